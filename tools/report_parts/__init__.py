"""What tools/report is made of: reading (files), drawing (style and saving), pictures (of one run), comparison (of several), page (HTML), events (TensorBoard)."""

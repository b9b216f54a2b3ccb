// The one place that compiles stb's PNG writer; everyone else includes the header for its declarations.
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb/stb_image_write.h>

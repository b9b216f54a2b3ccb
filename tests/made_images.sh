# For tests/cli: 64 training and 32 test images of MNIST's form, the ten classes by turns, in the folder data. To be sourced.
u32() { printf '%b' "$(printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 >> 24)) $(($1 >> 16 & 255)) $(($1 >> 8 & 255)) $(($1 & 255)))"; }
mkdir data
for set in train:64 t10k:32; do
    n=${set#*:}
    { u32 2051 && u32 "$n" && u32 28 && u32 28 && yes 'a chain of images' | head -c $((n * 784)); } >"data/${set%:*}-images-idx3-ubyte"
    { u32 2049 && u32 "$n" && for ((i = 0; i < n; ++i)); do printf '%b' "\\x0$((i % 10))"; done; } >"data/${set%:*}-labels-idx1-ubyte"
done

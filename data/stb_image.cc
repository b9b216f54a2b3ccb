// The one place that compiles stb's image decoder; everyone else includes the header for its declarations.
#include <cstdlib>

#define STB_IMAGE_IMPLEMENTATION
#define STBI_NO_STDIO
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_ONLY_BMP
// Zeros: a JPEG may use tables that it never defines, and stb would take them, and its indices, from whatever lay there.
#define STBI_MALLOC(num_bytes) std::calloc(1, num_bytes)
#define STBI_REALLOC(memory, num_bytes) std::realloc(memory, num_bytes)
#define STBI_FREE(memory) std::free(memory)
#include <stb/stb_image.h>

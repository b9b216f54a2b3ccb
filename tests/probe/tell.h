// What both programs of the probe tell, and how: lines that begin with "ok", "FAIL", "time" or "info".
#pragma once

#include <cstdarg>
#include <cstdio>

constexpr double kMatmul = 746;  // TFLOP/s of a large bf16 matmul on an H100 SXM, measured before

inline void line(const char* kind, const char* format, ...) __attribute__((format(printf, 2, 3)));
inline void line(const char* kind, const char* format, ...) {
    std::printf("%-5s ", kind);
    va_list a;
    va_start(a, format);
    std::vprintf(format, a);
    va_end(a);
    std::printf("\n");
    std::fflush(stdout);
}

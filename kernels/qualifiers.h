// The only place where the two compilers of a functor differ.
#pragma once

#ifdef __CUDACC__
#define JEM_HD __host__ __device__
#define JEM_PRAGMA(text) _Pragma(#text)
#define JEM_UNROLL(n) JEM_PRAGMA(unroll n)
#else
#define JEM_HD
#define JEM_UNROLL(n)
#endif

// The only place where the two compilers of a functor differ.
#pragma once

#ifdef __CUDACC__
#define JEM_HD __host__ __device__
#define JEM_HD_INLINE __host__ __device__ __forceinline__
#else
#define JEM_HD
#define JEM_HD_INLINE [[gnu::always_inline]] inline
#endif

// Of the loop that follows, on a GPU; nvcc's passes for the host do not know it.
#ifdef __CUDA_ARCH__
#define JEM_PRAGMA(text) _Pragma(#text)
#define JEM_UNROLL(n) JEM_PRAGMA(unroll n)
#else
#define JEM_UNROLL(n)
#endif

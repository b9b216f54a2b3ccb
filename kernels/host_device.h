// The only place where the two compilers of a functor differ.
#pragma once

#ifdef __CUDACC__
#define JEM_HD __host__ __device__
#else
#define JEM_HD
#endif

// Every functor, compiled for the GPU.
#include "kernels/ops_impl.h"
#include "kernels/primitives_cuda.cuh"

template class jem::OpsOn<jem::CudaExec, float, float>;

/* A libcuda.so.1 for machines without a driver: every call answers that there is no device. With it cuDNN compiles graphs for
 * GPUs that are only described. For tests; never installed. */
enum { kNoDevice = 100 };

#define NO_DEVICE(name) \
    int name(void);     \
    int name(void) { return kNoDevice; }

int cuDeviceGetCount(int* count);
int cuDeviceGetCount(int* count) {
    if (count) *count = 0;
    return kNoDevice;
}
int cuDriverGetVersion(int* version);
int cuDriverGetVersion(int* version) {
    if (version) *version = 13000;
    return 0;
}

NO_DEVICE(cuInit)
NO_DEVICE(cuDeviceGet)
NO_DEVICE(cuGetErrorName)
NO_DEVICE(cuGetErrorString)
NO_DEVICE(cuCtxGetCurrent)
NO_DEVICE(cuCtxGetLimit)
NO_DEVICE(cuCtxPopCurrent)
NO_DEVICE(cuCtxPushCurrent)
NO_DEVICE(cuStreamGetCtx)
NO_DEVICE(cuLinkCreate)
NO_DEVICE(cuLinkAddData)
NO_DEVICE(cuLinkComplete)
NO_DEVICE(cuLinkDestroy)
NO_DEVICE(cuLaunchKernel)
NO_DEVICE(cuLaunchCooperativeKernel)
NO_DEVICE(cuLaunchKernelEx)
NO_DEVICE(cuLibraryLoadData)
NO_DEVICE(cuLibraryLoadFromFile)
NO_DEVICE(cuLibraryGetKernel)
NO_DEVICE(cuLibraryUnload)
NO_DEVICE(cuKernelSetAttribute)
NO_DEVICE(cuKernelGetAttribute)
NO_DEVICE(cuOccupancyMaxPotentialClusterSize)
NO_DEVICE(cuModuleLoadData)
NO_DEVICE(cuModuleGetFunction)
NO_DEVICE(cuModuleUnload)
NO_DEVICE(cuFuncSetAttribute)

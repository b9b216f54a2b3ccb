// cudnn-frontend's headers hold an engine of their own, for another kind of network, that compiles by NVRTC; the compiler emits it,
// nobody calls it. Linking NVRTC for it would cost every start of the program 34 MB: these answer in its place. cuDNN itself
// loads NVRTC when it compiles a graph, and never sees these.
#include <nvrtc.h>

#define JEM_UNUSED __attribute__((visibility("hidden")))

JEM_UNUSED nvrtcResult nvrtcCreateProgram(nvrtcProgram*, const char*, const char*, int, const char* const*, const char* const*) {
    return NVRTC_ERROR_INTERNAL_ERROR;
}
JEM_UNUSED nvrtcResult nvrtcDestroyProgram(nvrtcProgram*) { return NVRTC_ERROR_INTERNAL_ERROR; }
JEM_UNUSED nvrtcResult nvrtcCompileProgram(nvrtcProgram, int, const char* const*) { return NVRTC_ERROR_INTERNAL_ERROR; }
JEM_UNUSED nvrtcResult nvrtcGetCUBIN(nvrtcProgram, char*) { return NVRTC_ERROR_INTERNAL_ERROR; }
JEM_UNUSED nvrtcResult nvrtcGetCUBINSize(nvrtcProgram, size_t*) { return NVRTC_ERROR_INTERNAL_ERROR; }
JEM_UNUSED nvrtcResult nvrtcGetProgramLog(nvrtcProgram, char*) { return NVRTC_ERROR_INTERNAL_ERROR; }
JEM_UNUSED nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram, size_t*) { return NVRTC_ERROR_INTERNAL_ERROR; }

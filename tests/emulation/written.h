// Which bytes of device memory anyone has written. Kept only by the build that is told of every access (see written.cc);
// in the others these do nothing, and what nobody wrote is NaN.
#pragma once

#include <cstddef>
#include <string>

namespace cuda_on_host {

#ifdef CUDA_ON_HOST_INIT
void watch_writes(char* memory, size_t bytes);  // an allocation, none of it written
void unwatch_writes(char* memory);
void note_unwritten(void* memory, size_t bytes);
// What a copy brings: the source's state, or written bytes where the source is null.
void copy_written(void* to, const void* from, size_t bytes);
const char* first_unwritten(const void* memory, size_t bytes);  // null: all written
// What the kernel that just ended read although nobody had written it, "" if nothing. Bytes that it wrote later are let pass: an
// output's load that nothing needs (nvcc drops it); where it was needed the result is NaN.
std::string unwritten_reads();
#else
inline void watch_writes(char*, size_t) {}
inline void unwatch_writes(char*) {}
inline void note_unwritten(void*, size_t) {}
inline void copy_written(void*, const void*, size_t) {}
inline const char* first_unwritten(const void*, size_t) { return nullptr; }
inline std::string unwritten_reads() { return ""; }
#endif

std::string describe_unwritten(const void* address);

}  // namespace cuda_on_host

# Looks for nvcc, cuDNN, cuBLASLt and cudnn-frontend, and enables the language CUDA. Included by the top CMakeLists.txt; sets
# JEM_HAS_CUDA, and JEM_CUDA_MISSING: what is missing and how to get it. Where all is there, the target jem_nvidia is what links to
# NVIDIA's libraries: never to libcuda, so that the program starts where there is no driver.
set(JEM_CUDA_MINIMUM 12.8)
set(JEM_CUDNN_MINIMUM 9.8)
set(CUDNN_FRONTEND_INCLUDE_DIR "" CACHE PATH "Folder of cudnn_frontend.h; empty: where tools/setup puts it")

set(JEM_HAS_CUDA OFF)
set(JEM_CUDA_MISSING "")
macro(jem_without_cuda why)
  set(JEM_CUDA_MISSING "${why}")
  if(JEM_CUDA STREQUAL "ON")
    message(FATAL_ERROR "JEM_CUDA is ON but ${why}. CUDA ${JEM_CUDA_MINIMUM} is found by CUDA_HOME or CMAKE_CUDA_COMPILER, cuDNN "
                        "${JEM_CUDNN_MINIMUM} beside it, cudnn-frontend is installed by tools/setup; or set JEM_CUDA to OFF.")
  endif()
  message(STATUS "CUDA parts are left out: ${why}")
  return()
endmacro()

if(NOT JEM_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "JEM_CUDA is ${JEM_CUDA}. Set it to AUTO, ON or OFF.")
endif()
if(JEM_CUDA STREQUAL "OFF")
  jem_without_cuda("JEM_CUDA is OFF")
endif()

if(NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE)  # not found last time: look again
endif()
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(JEM_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
  if(JEM_NVCC)
    set(ENV{CUDACXX} ${JEM_NVCC})
  endif()
endif()
# nvcc takes few versions of clang: its host compiler is g++ whatever compiles the rest.
if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND NOT CMAKE_CUDA_HOST_COMPILER AND NOT DEFINED ENV{CUDAHOSTCXX})
  find_program(JEM_GXX g++)
  if(JEM_GXX)
    set(ENV{CUDAHOSTCXX} ${JEM_GXX})
  endif()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  jem_without_cuda("no working nvcc was found")
endif()

# Before the language is enabled: CMake would fill in its own choice.
if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  if(JEM_CUDA_ALL_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90-real 100-real 120)  # the last one as PTX too, for what comes after
  else()
    # What the build is for: the GPUs that are here; without any the kernels are still compiled and checked.
    find_program(JEM_NVIDIA_SMI nvidia-smi)
    include(${CMAKE_CURRENT_LIST_DIR}/architectures.cmake)
    jem_architectures_at_hand(CMAKE_CUDA_ARCHITECTURES)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 90)
    endif()
  endif()
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS JEM_CUDA_MINIMUM)
  jem_without_cuda("${CMAKE_CUDA_COMPILER} is of version ${CMAKE_CUDA_COMPILER_VERSION}")
endif()
find_package(CUDAToolkit ${JEM_CUDA_MINIMUM} REQUIRED)

# cuDNN lies in the toolkit or where the system keeps libraries.
find_path(JEM_CUDNN_INCLUDE_DIR cudnn_version.h HINTS ${CUDAToolkit_INCLUDE_DIRS} $ENV{CUDNN_HOME}/include)
find_library(JEM_CUDNN_LIBRARY cudnn HINTS ${CUDAToolkit_LIBRARY_DIR} $ENV{CUDNN_HOME}/lib $ENV{CUDNN_HOME}/lib64)
if(NOT JEM_CUDNN_INCLUDE_DIR OR NOT JEM_CUDNN_LIBRARY)
  jem_without_cuda("cuDNN was not found (CUDNN_HOME may say where it is)")
endif()
file(STRINGS ${JEM_CUDNN_INCLUDE_DIR}/cudnn_version.h cudnn_lines REGEX "define CUDNN_(MAJOR|MINOR|PATCHLEVEL) [0-9]+")
string(REGEX REPLACE "[^0-9;]" "" JEM_CUDNN_VERSION "${cudnn_lines}")
string(REPLACE ";" "." JEM_CUDNN_VERSION "${JEM_CUDNN_VERSION}")
if(JEM_CUDNN_VERSION VERSION_LESS JEM_CUDNN_MINIMUM)
  jem_without_cuda("cuDNN ${JEM_CUDNN_VERSION} was found, ${JEM_CUDNN_MINIMUM} or newer is needed")
endif()
set(cudnn_frontend ${CUDNN_FRONTEND_INCLUDE_DIR})
if(NOT cudnn_frontend)
  set(cudnn_frontend ${CMAKE_SOURCE_DIR}/build/cudnn_frontend/include)
endif()
if(NOT EXISTS ${cudnn_frontend}/cudnn_frontend.h)
  jem_without_cuda("there is no ${cudnn_frontend}/cudnn_frontend.h (tools/setup gets it)")
endif()
if(NOT CUDA_cublasLt_LIBRARY)
  jem_without_cuda("cuBLASLt is not in the toolkit")
endif()

# cuBLASLt (cublas_product.cc) and NVRTC (nvrtc_unused.cc) are loaded when they are used: linked, they would cost every start of the
# program 0.2 s and 250 MB. CMake's target CUDA::nvrtc would also bring the toolkit's stub of libcuda along.
add_library(jem_nvidia INTERFACE)
target_include_directories(jem_nvidia SYSTEM INTERFACE ${cudnn_frontend} ${JEM_CUDNN_INCLUDE_DIR} ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(jem_nvidia INTERFACE ${JEM_CUDNN_LIBRARY} CUDA::cudart ${CMAKE_DL_LIBS})
message(STATUS "CUDA parts are compiled for ${CMAKE_CUDA_ARCHITECTURES}, with cuDNN ${JEM_CUDNN_VERSION}")
set(JEM_HAS_CUDA ON)

if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # CMake 3.25.1 does not know that nvcc takes it
endif()

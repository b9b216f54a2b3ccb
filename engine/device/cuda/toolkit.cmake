# Looks for nvcc, cuDNN, cuBLASLt and cudnn-frontend, and enables the language CUDA. Included by the top CMakeLists.txt; sets
# JEM_HAS_CUDA, and JEM_CUDA_MISSING: what is missing and how to get it.
set(JEM_CUDA_MINIMUM 12.8)

set(JEM_HAS_CUDA OFF)
set(JEM_CUDA_MISSING "")
macro(jem_without_cuda why)
  set(JEM_CUDA_MISSING "${why}")
  if(JEM_CUDA STREQUAL "ON")
    message(FATAL_ERROR "JEM_CUDA is ON but ${why}. Set CUDA_HOME or CMAKE_CUDA_COMPILER to CUDA ${JEM_CUDA_MINIMUM} or newer, "
                        "or JEM_CUDA to OFF.")
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
    set(CMAKE_CUDA_ARCHITECTURES 90)
  endif()
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS JEM_CUDA_MINIMUM)
  jem_without_cuda("${CMAKE_CUDA_COMPILER} is of version ${CMAKE_CUDA_COMPILER_VERSION}")
endif()
find_package(CUDAToolkit ${JEM_CUDA_MINIMUM} REQUIRED)
message(STATUS "CUDA parts are compiled for ${CMAKE_CUDA_ARCHITECTURES}")
set(JEM_HAS_CUDA ON)

if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # CMake 3.25.1 does not know that nvcc takes it
endif()

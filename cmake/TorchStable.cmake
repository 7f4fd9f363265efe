# The imported target torch_stable: headers and libtorch_cpu of the torch that this Python imports.
# Not find_package(Torch): that needs a CUDA toolkit whenever torch was built with CUDA, and overrides the architectures.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
          "import os, torch; root = os.path.dirname(torch.__file__); print(root, torch.__version__, torch.version.cuda or 'none', sep=';')"
  OUTPUT_VARIABLE torch_facts
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_VARIABLE torch_error
  RESULT_VARIABLE torch_missing)
if(torch_missing)
  message(FATAL_ERROR "maskco: '${Python_EXECUTABLE}' cannot import torch, which the build needs.\n"
                      "Install torch>=2.11 first, or let pip do so by building without --no-build-isolation.\n${torch_error}")
endif()
list(GET torch_facts 0 TORCH_ROOT)
list(GET torch_facts 1 TORCH_VERSION)
list(GET torch_facts 2 TORCH_CUDA_VERSION)
if(TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "maskco: torch ${TORCH_VERSION} is too old: its stable ABI is used from 2.11 on. Upgrade torch.")
endif()

set(MASKCO_TORCH_ABI "2.11")
add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE "${TORCH_ROOT}/include")
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
target_link_libraries(torch_stable INTERFACE "${TORCH_ROOT}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}torch_cpu${CMAKE_SHARED_LIBRARY_SUFFIX}")

// The Python module of `_C` and of `_C_cuda`: facts about the build and this machine. Importing it registers the ops
// that it is linked with.
#include <pybind11/pybind11.h>

#include "cpu/common/instruction_set.h"

namespace py = pybind11;

static const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

PYBIND11_MODULE(MASKCO_MODULE, m) {
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = MASKCO_VERSION;
        info["compiler"] = compiler();
        info["torch_built_with"] = MASKCO_TORCH_VERSION;
        info["torch_abi_target"] = MASKCO_TORCH_ABI;  // the oldest torch whose stable ABI is used
        info["cuda"] = MASKCO_CUDA_STATUS;            // what was decided about CUDA, and why
#ifdef MASKCO_CUDA_ARCHS
        info["cuda_archs"] = MASKCO_CUDA_ARCHS;
        info["cuda_compiler"] = MASKCO_CUDA_COMPILER;
#ifdef MASKCO_FLASH_SHAPE
        info["flash_shape"] = MASKCO_FLASH_SHAPE;  // tried in place of the table's
#endif
#else
        info["cpu_kernels"] = maskco::instruction_set_name();  // what the CPU ops run with here
#endif
        return info;
      },
      "What this module was built with, as a dict of strings.");
}

// Names and texts of CUDA errors.
#pragma once
#include <cuda_runtime_api.h>

namespace ptxsim_cudart {

struct ErrorText {
  cudaError_t code;
  const char *name, *text;
};
#define E(code, text) {code, #code, text}
inline constexpr ErrorText ERRORS[] = {
    E(cudaSuccess, "no error"),
    E(cudaErrorInvalidValue, "invalid argument"),
    E(cudaErrorMemoryAllocation, "out of memory"),
    E(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    E(cudaErrorInvalidSymbol, "invalid device symbol"),
    E(cudaErrorInvalidDevice, "invalid device ordinal"),
    E(cudaErrorInvalidDeviceFunction, "invalid device function"),
    E(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device"),
    E(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    E(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    E(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    E(cudaErrorMisalignedAddress, "misaligned address"),
    E(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    E(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    E(cudaErrorAssert, "device-side assert triggered"),
    E(cudaErrorLaunchFailure, "unspecified launch failure"),
    E(cudaErrorCooperativeLaunchTooLarge, "too many blocks in cooperative launch"),
    E(cudaErrorNotSupported, "operation not supported"),
    E(cudaErrorInvalidClusterSize, "Invalid cluster size"),
    E(cudaErrorUnknown, "unknown error")};
#undef E
inline const ErrorText& error_text(cudaError_t c) {
  for (auto& e : ERRORS)
    if (e.code == c) return e;
  return ERRORS[sizeof ERRORS / sizeof *ERRORS - 1];
}

}  // namespace ptxsim_cudart

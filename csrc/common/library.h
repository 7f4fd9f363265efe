// The namespace the ops are registered in, and torch's registration macros with their arguments expanded first.
// The simulated CUDA build (-DPTXSIM, see tests/) registers the CUDA ops for CPU tensors, in a namespace of its own.
#pragma once
#include <torch/csrc/stable/library.h>

#ifdef PTXSIM
#define MASKCO_NAMESPACE maskco_sim
#else
#define MASKCO_NAMESPACE maskco
#endif

#define MASKCO_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define MASKCO_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)

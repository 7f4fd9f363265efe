// The namespace of the ops, and torch's registration macros with their arguments expanded first. Two builds for tests
// register their ops for CPU tensors in their own namespaces: the simulated CUDA device (-DPTXSIM), and the CPU ops
// with a model of AMX's tile registers (-DMASKCO_AMX_MODEL).
#pragma once
#include <torch/csrc/stable/library.h>

#ifdef PTXSIM
#define MASKCO_NAMESPACE maskco_sim
#elif defined(MASKCO_AMX_MODEL)
#define MASKCO_NAMESPACE maskco_amx
#else
#define MASKCO_NAMESPACE maskco
#endif

#define MASKCO_LIBRARY(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define MASKCO_LIBRARY_IMPL(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)

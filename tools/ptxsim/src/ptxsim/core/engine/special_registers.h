// Special registers: %tid.x, %laneid, ... Their values do not change while a block runs.
#pragma once
#include <map>
#include <string>

#include "engine/state.h"

namespace ptxsim {

constexpr u64 NUM_SMS = 132;  // what %nsmid says

inline u32 linear_thread(const Warp& warp, int lane) { return warp.id * 32 + lane; }
inline u32 lane_bit(int lane) { return 1u << lane; }

// The function that computes a special register's value.
inline SpecialValue special_value(const std::string& name) {
  using B = const Block&;
  using W = const Warp&;
  static const std::map<std::string, SpecialValue> VALUES = {
      {"%tid.x", [](B b, W w, int lane) -> u64 { return linear_thread(w, lane) % b.launch->block[0]; }},
      {"%tid.y",
       [](B b, W w, int lane) -> u64 { return linear_thread(w, lane) / b.launch->block[0] % b.launch->block[1]; }},
      {"%tid.z",
       [](B b, W w, int lane) -> u64 { return linear_thread(w, lane) / b.launch->block[0] / b.launch->block[1]; }},
      {"%ntid.x", [](B b, W, int) -> u64 { return b.launch->block[0]; }},
      {"%ntid.y", [](B b, W, int) -> u64 { return b.launch->block[1]; }},
      {"%ntid.z", [](B b, W, int) -> u64 { return b.launch->block[2]; }},
      {"%ctaid.x", [](B b, W, int) -> u64 { return b.index[0]; }},
      {"%ctaid.y", [](B b, W, int) -> u64 { return b.index[1]; }},
      {"%ctaid.z", [](B b, W, int) -> u64 { return b.index[2]; }},
      {"%nctaid.x", [](B b, W, int) -> u64 { return b.launch->grid[0]; }},
      {"%nctaid.y", [](B b, W, int) -> u64 { return b.launch->grid[1]; }},
      {"%nctaid.z", [](B b, W, int) -> u64 { return b.launch->grid[2]; }},
      // clusters have one block
      {"%clusterid.x", [](B b, W, int) -> u64 { return b.index[0]; }},
      {"%clusterid.y", [](B b, W, int) -> u64 { return b.index[1]; }},
      {"%clusterid.z", [](B b, W, int) -> u64 { return b.index[2]; }},
      {"%nclusterid.x", [](B b, W, int) -> u64 { return b.launch->grid[0]; }},
      {"%nclusterid.y", [](B b, W, int) -> u64 { return b.launch->grid[1]; }},
      {"%nclusterid.z", [](B b, W, int) -> u64 { return b.launch->grid[2]; }},
      {"%cluster_nctaid.x", [](B, W, int) -> u64 { return 1; }},
      {"%cluster_nctaid.y", [](B, W, int) -> u64 { return 1; }},
      {"%cluster_nctaid.z", [](B, W, int) -> u64 { return 1; }},
      {"%cluster_nctarank", [](B, W, int) -> u64 { return 1; }},
      {"%laneid", [](B, W, int lane) -> u64 { return lane; }},
      {"%warpid", [](B, W w, int) -> u64 { return w.id; }},
      {"%nwarpid", [](B b, W, int) -> u64 { return b.num_warps; }},
      {"%smid", [](B b, W, int) -> u64 { return b.linear % NUM_SMS; }},
      {"%nsmid", [](B, W, int) -> u64 { return NUM_SMS; }},
      {"%lanemask_eq", [](B, W, int lane) -> u64 { return lane_bit(lane); }},
      {"%lanemask_lt", [](B, W, int lane) -> u64 { return lane_bit(lane) - 1; }},
      {"%lanemask_le", [](B, W, int lane) -> u64 { return (lane_bit(lane) - 1) | lane_bit(lane); }},
      {"%lanemask_gt", [](B, W, int lane) -> u64 { return ~((lane_bit(lane) - 1) | lane_bit(lane)); }},
      {"%lanemask_ge", [](B, W, int lane) -> u64 { return ~(lane_bit(lane) - 1); }},
      {"%dynamic_smem_size", [](B b, W, int) -> u64 { return b.launch->dynamic_shared; }},
      {"%total_smem_size", [](B b, W, int) -> u64 { return b.launch->user_shared; }},
      {"%aggr_smem_size", [](B b, W, int) -> u64 { return b.launch->user_shared; }},
      // a cooperative launch's barrier words
      {"%envreg1", [](B b, W, int) -> u64 { return b.launch->grid_barrier >> 32; }},
      {"%envreg2", [](B b, W, int) -> u64 { return b.launch->grid_barrier & 0xffffffffu; }},
  };
  auto it = VALUES.find(name);
  // (the others, such as %cluster_ctaid.x and %gridid, are 0)
  return it != VALUES.end() ? it->second : [](B, W, int) -> u64 { return 0; };
}

}  // namespace ptxsim

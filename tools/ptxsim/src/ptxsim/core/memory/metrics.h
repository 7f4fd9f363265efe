// Counts of memory accesses: coalescing and bank conflicts.
#pragma once
#include <algorithm>

#include "engine/state.h"

namespace ptxsim {

// One global access of the lanes in m: 32-byte sectors touched, and the least that would hold its bytes.
inline void count_global_access(Warp& warp, const Instruction& in, u32 m, const u64* addresses, int bytes) {
  InstructionStats& s = warp.stats[in.pc];
  u64 sorted[32];
  int n = 0;
  bool ascending = true;
  u64 previous = 0;
  for (int l = 0; l < 32; l++)
    if (m >> l & 1) {
      u64 a = addresses[l];
      if (a < previous) ascending = false;
      previous = a;
      sorted[n++] = a;
    }
  if (!ascending) std::sort(sorted, sorted + n);
  u64 distinct = 0, sectors = 0, last_address = ~0ull, last_sector = ~0ull;
  for (int k = 0; k < n; k++) {
    if (sorted[k] == last_address) continue;
    last_address = sorted[k];
    distinct++;
    u64 first = sorted[k] >> 5, last = (sorted[k] + bytes - 1) >> 5;
    sectors += last - first + 1;
    if (first == last_sector) sectors--;
    last_sector = last;
  }
  s.accesses++;
  s.bytes += (u64)n * bytes;
  s.sectors += sectors;
  s.min_sectors += (distinct * bytes + 31) / 32;
}
// Wavefronts of one phase of a shared access: the most distinct words in one bank.
inline u32 bank_conflict_degree(const u64* a, int n, int bytes) {
  u64 lo = ~0ull, hi = 0;
  for (int k = 0; k < n; k++) {
    if (a[k] < lo) lo = a[k];
    if (a[k] > hi) hi = a[k];
  }
  if (hi + bytes - (lo & ~3ull) <= 128) return 1;
  u8 cnt[32] = {0};
  u32 words[32][32];
  u32 deg = 1;
  int nw = bytes < 4 ? 1 : bytes / 4;
  for (int k = 0; k < n; k++)
    for (int j = 0; j < nw; j++) {
      u32 wd = (u32)(a[k] >> 2) + j, b = wd & 31;
      bool seen = false;
      for (int q = 0; q < cnt[b]; q++)
        if (words[b][q] == wd) {
          seen = true;
          break;
        }
      if (!seen && cnt[b] < 32) {
        words[b][cnt[b]++] = wd;
        if (cnt[b] > deg) deg = cnt[b];
      }
    }
  return deg;
}
// One shared access: phases of 32, 16 or 8 lanes, each with at least one wavefront.
inline void count_shared_access(Warp& warp, const Instruction& in, u32 m, const u64* addresses, int bytes) {
  int per = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  InstructionStats& s = warp.stats[in.pc];
  u64 t[32];
  u64 wf = 0, mn = 0;
  for (int p = 0; p < 32; p += per) {
    int n = 0;
    for (int l = p; l < p + per; l++)
      if (m >> l & 1) t[n++] = addresses[l];
    if (!n) continue;
    u32 d = bank_conflict_degree(t, n, bytes);
    wf += d;
    mn++;
    if (d > s.max_degree) s.max_degree = d;
  }
  s.accesses++;
  s.bytes += (u64)__builtin_popcount(m) * bytes;
  s.wavefronts += wf;
  s.min_wavefronts += mn;
}

}  // namespace ptxsim

// The sample points of a RoIAlign grid along one axis, for both CPU and CUDA. The points of a RoI are a product of rows
// and columns, so its mean is a separable weighted sum of feature rows and columns. Rounding follows torchvision's
// order of operations, so that points on the border fall on the same side. Include no torch header here, since device
// code includes this file.
#pragma once

#ifdef __CUDACC__
#define MASKCO_HOST_DEVICE __host__ __device__
#else
#define MASKCO_HOST_DEVICE
#endif

namespace maskco {

struct RoiGrid {  // the same for all boxes of a call
  double spatial_scale;
  long long output_height, output_width;  // bins
  long long sampling_ratio;               // 0 or less: adaptive, about one point for each feature pixel
  bool aligned;
};

template <class T>
struct RoiSamples {
  T start, bin_size;
  long long bins, per_bin, size;  // size: of the feature map along this axis
  bool finite;

  MASKCO_HOST_DEVICE RoiSamples(T low, T high, const RoiGrid& grid, long long bins_, long long size_)
      : bins(bins_), size(size_) {
    const T scale = T(grid.spatial_scale), offset = grid.aligned ? T(0.5) : T(0);
    start = low * scale - offset;
    T extent = (high * scale - offset) - start;
    if (!grid.aligned && extent < T(1)) extent = T(1);
    finite = (start + extent) - (start + extent) == T(0);
    bin_size = extent / T(bins);
    per_bin = grid.sampling_ratio;
    if (per_bin <= 0) {  // ceil(bin_size). Inverted boxes have 0 or less, and then no points
      const T limit = T(4e18);
      per_bin = !finite ? 0 : bin_size < limit ? (long long)(bin_size) : (long long)(limit);
      if (finite && bin_size < limit && T(per_bin) < bin_size) per_bin++;
      if (per_bin < 0) per_bin = 0;
    }
  }
  MASKCO_HOST_DEVICE T position(long long bin, long long i) const {
    return start + T(bin) * bin_size + (T(i) + T(0.5)) * bin_size / T(per_bin);
  }
  MASKCO_HOST_DEVICE bool inside(T position) const { return position >= T(-1) && position <= T(size); }
  MASKCO_HOST_DEVICE T share() const { return T(1) / (T(bins) * T(per_bin)); }

  // Within a bin, positions rise or fall with i, even when rounded. So bisection finds points, and a box costs no more
  // than the map however large it is.

  // The first i in [from, to) whose position has reached `bound`, or with `passed` is past it.
  MASKCO_HOST_DEVICE long long reach(long long bin, long long from, long long to, T bound, bool passed) const {
    while (from < to) {
      const long long middle = from + (to - from) / 2;
      const T at = position(bin, middle);
      if (at == bound ? !passed : (at > bound) == (bin_size >= T(0)))
        to = middle;
      else
        from = middle + 1;
    }
    return from;
  }
  // A range [first, last) that contains all points of a bin with low <= position <= high.
  MASKCO_HOST_DEVICE void range(long long bin, T low, T high, long long* first, long long* last) const {
    *first = 0, *last = per_bin;
    if (per_bin <= 4) return;
    const bool rising = bin_size >= T(0);
    *first = reach(bin, 0, per_bin, rising ? low : high, false);
    *last = reach(bin, *first, per_bin, rising ? high : low, true);
    if (*first > 0) --*first;  // one more at each end: two calls of position() may be contracted differently
    if (*last < per_bin) ++*last;
  }
  // The end of the run of points with the position of point i. Far from the map, float32 positions are coarse.
  MASKCO_HOST_DEVICE long long run_end(long long bin, long long i, long long last) const {
    const T here = position(bin, i);
    return i + 1 >= last || position(bin, i + 1) != here ? i + 1 : reach(bin, i + 2, last, here, true);
  }

  // The two rows that a point lies between, and the share of the second one.
  MASKCO_HOST_DEVICE void rows(T position, long long* low, long long* high, T* fraction) const {
    if (position <= T(0)) position = T(0);
    *low = (long long)(position);
    if (*low >= size - 1) {
      *low = *high = size - 1;
      *fraction = T(0);
    } else {
      *high = *low + 1;
      *fraction = position - T(*low);
    }
  }
};

}  // namespace maskco

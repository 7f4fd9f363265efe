// The weights of one image's regions as a block-sparse matrix [regions, pixels]: of every region only the blocks of
// `lanes` consecutive pixels that it touches. Boxes, masks and label maps differ in how it is filled, and in nothing
// else. The matrix remembers which pixels a region touches (a touched pixel may weigh 0), since a NaN elsewhere in a
// block, or behind the last pixel, must not reach the region: see `exact`.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "../common/roi_samples.h"

namespace maskco {

template <class T>
struct WeightsView {
  const int64_t* begin;  // [regions + 1], into the entries
  const int64_t* block;  // [entries], ascending within a region
  const T* weight;       // [entries, lanes]
  int64_t regions;
  bool dense;  // every region has every block
};

struct BlockView {        // the same entries by block, regions ascending within each
  const int64_t* begin;   // [blocks + 1]
  const int64_t* entry;   // [entries]
  const int64_t* region;  // [entries]
};

// Features of one image, or of a range of its channels. One of the strides is 1.
template <class S>
struct Columns {
  S* data;
  int64_t pixels, columns;
  int64_t pixel_stride, column_stride;
  bool pixels_contiguous;
};

template <class S>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

template <class T>
class RegionWeights {
 public:
  RegionWeights(int64_t lanes, int64_t pixels) : lanes_(lanes), pixels_(pixels) {}

  // A region's pixels are set in ascending order.
  void set(int64_t pixel, T weight) {
    const int64_t block = pixel / lanes_;
    if (block_.size() == size_t(begin_.back()) || block_.back() != block) {
      block_.push_back(block);
      weight_.resize(weight_.size() + lanes_, T(0));
      touched_.push_back(0);
    }
    weight_[weight_.size() - lanes_ + pixel % lanes_] = weight;
    touched_.back() |= 1u << (pixel % lanes_);
  }
  // A region that touches every pixel: its weights [pixels], to be written.
  T* add_dense_region() {
    const int64_t blocks = (pixels_ + lanes_ - 1) / lanes_, rest = pixels_ - (blocks - 1) * lanes_;
    const size_t first = weight_.size();
    weight_.resize(first + blocks * lanes_, T(0));
    for (int64_t b = 0; b < blocks; b++) {
      block_.push_back(b);
      touched_.push_back((1u << (b + 1 < blocks ? lanes_ : rest)) - 1);
    }
    end_region();
    return weight_.data() + first;
  }
  void end_region() { begin_.push_back(int64_t(block_.size())); }

  WeightsView<T> view() const {
    const int64_t blocks = (pixels_ + lanes_ - 1) / lanes_;
    return {begin_.data(), block_.data(), weight_.data(), regions(), int64_t(block_.size()) == regions() * blocks};
  }
  int64_t regions() const { return int64_t(begin_.size()) - 1; }

  T total(int64_t region) const {  // the sum of its weights
    double sum = 0;                // in float32, counting stops at 2^24 pixels
    for (int64_t i = begin_[region] * lanes_; i < begin_[region + 1] * lanes_; i++) sum += weight_[i];
    return T(sum);
  }

  // out[region] of one column, term by term over the touched pixels only
  template <class S>
  T exact(int64_t region, const S* column, int64_t pixel_stride) const {
    T sum = 0;
    for (int64_t e = begin_[region]; e < begin_[region + 1]; e++)
      for (int64_t l = 0; l < lanes_; l++)
        if (touched_[e] >> l & 1) sum += weight_[e * lanes_ + l] * T(column[(block_[e] * lanes_ + l) * pixel_stride]);
    return sum;
  }

  // Whether the blocks of a column, which are read whole, end within `available` elements from its first one.
  bool fits(int64_t available) const { return lanes_ == 1 || (pixels_ + lanes_ - 1) / lanes_ * lanes_ <= available; }

  // The entries by block (a counting sort).
  struct Blocks {
    std::vector<int64_t> begin, entry, region;
    BlockView view() const { return {begin.data(), entry.data(), region.data()}; }
  };
  Blocks by_block() const {
    const size_t entries = block_.size();
    Blocks out{std::vector<int64_t>((pixels_ + lanes_ - 1) / lanes_ + 1), std::vector<int64_t>(entries),
               std::vector<int64_t>(entries)};
    for (int64_t b : block_) out.begin[b + 1]++;
    for (size_t b = 1; b < out.begin.size(); b++) out.begin[b] += out.begin[b - 1];
    std::vector<int64_t> next(out.begin.begin(), out.begin.end() - 1);
    for (int64_t r = 0; r < regions(); r++)
      for (int64_t e = begin_[r]; e < begin_[r + 1]; e++) {
        const int64_t slot = next[block_[e]]++;
        out.entry[slot] = e;
        out.region[slot] = r;
      }
    return out;
  }

 private:
  int64_t lanes_, pixels_;
  std::vector<int64_t> begin_{0}, block_;
  std::vector<T> weight_;
  std::vector<uint32_t> touched_;  // [entries], a bit per lane: at most 16 lanes (64 bytes of float32)
};

// The rows (or columns) that the sample points of a box touch, ascending, and their shares of the mean.
template <class T>
class AxisWeights {
 public:
  struct Share {
    int64_t index;
    T weight;
  };
  const std::vector<Share>& compute(T low, T high, const RoiGrid& grid, int64_t size) {
    shares_.clear();
    const RoiSamples<T> samples(low, high, grid, size);
    finite = samples.finite;
    if (size == 0 || !finite) return shares_;
    dense_.assign(size, T(-1));
    for (int64_t bin = 0; bin < samples.bins; bin++) {
      long long first, last;
      samples.range(bin, T(-1), T(size), &first, &last);
      for (long long i = first; i < last; i++) {
        const T position = samples.position(bin, i);
        if (!samples.inside(position)) continue;
        long long row, next;
        T fraction;
        samples.rows(position, &row, &next, &fraction);
        add(row, 1 - fraction);
        if (next != row) add(next, fraction);
      }
    }
    for (int64_t i = 0; i < size; i++)
      if (dense_[i] >= 0) shares_.push_back({i, dense_[i] * samples.share()});
    return shares_;
  }
  bool finite = true;  // of the last box

 private:
  void add(int64_t row, T weight) { dense_[row] = (dense_[row] < 0 ? T(0) : dense_[row]) + weight; }
  std::vector<T> dense_;  // [size], -1: untouched
  std::vector<Share> shares_;
};

}  // namespace maskco

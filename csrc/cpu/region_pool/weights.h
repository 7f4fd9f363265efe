// The weights of one image's regions, made from boxes, masks or label maps, and the features that they weigh.
//
// Soft masks weigh every pixel, so their weights are a matrix. Boxes, bool masks and label maps choose pixels. There
// each pixel lists its regions, so NaN in the features (or Inf in a gradient) reaches only those regions.
#pragma once
#include <algorithm>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "common/roi_samples.h"

namespace maskco {

template <class S>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

// Positions along one or two tensor dimensions as one index.
struct Axis {
  static constexpr int64_t ONE_STRIDE = INT64_MAX;
  int64_t size, inner, outer_stride, stride, begin = 0;
  bool uniform() const { return inner == ONE_STRIDE; }
  int64_t offset(int64_t i) const {
    i += begin;
    return uniform() ? i * stride : i / inner * outer_stride + i % inner * stride;
  }
};

// Features of one image, or of a range of its channels.
template <class S>
struct FeatureMap {
  S* data;
  Axis pixels, channels;
  bool channels_side_by_side() const { return pixels.uniform() && channels.uniform() && channels.stride == 1; }
  bool pixels_side_by_side() const { return pixels.uniform() && channels.uniform() && pixels.stride == 1; }
};

// Sums run over blocks of PIXEL_BLOCK pixels. The last block also takes a remainder shorter than SHORTEST_BLOCK.
constexpr int64_t PIXEL_BLOCK = 32, SHORTEST_BLOCK = 16;
inline int64_t pixel_blocks(int64_t pixels) {
  return pixels < PIXEL_BLOCK + SHORTEST_BLOCK ? 1 : (pixels - SHORTEST_BLOCK) / PIXEL_BLOCK + 1;
}

// How weights that choose pixels are listed. Sums over pixels list by block of pixels, in runs of one region, whose sum
// stays in registers. The backward pass lists by pixel.
enum class ListBy { Block, Pixel };

template <class T>
struct WeightsView {
  struct Entry {
    int32_t index;  // of the pixel if listed by block, else of the region
    T weight;       // (8 bytes in float32: masks that overlap have many entries)
  };
  struct Run {
    int64_t region, begin;  // of its entries, which end where the next run's start
  };
  int64_t regions;
  const T* matrix;       // [regions, pixels] or null, padded with zeros: see Weights
  int64_t stride;        // of its rows
  const int64_t* begin;  // [blocks + 1] into runs, or [pixels + 1] into entries
  const Run* runs;
  const Entry* entries;
};

inline int64_t padded(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Memory aligned to a cache line. Vectors that cross a line are read and written in two accesses.
template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t LINE{64};
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), LINE)); }
  void deallocate(T* p, size_t) { ::operator delete(p, LINE); }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};
template <class T>
using Buffer = std::vector<T, LineAllocator<T>>;

template <class T>
class Weights {
 public:
  using Entry = typename WeightsView<T>::Entry;

  Weights(int64_t pixels, ListBy order) : pixels_(pixels), order_(order) {}

  // Rows [regions, row_stride()] to fill, padded to multiples of what kernels take at a time.
  T* make_matrix(int64_t regions) {
    regions_ = regions;
    matrix_.assign(padded(regions, 4) * row_stride() + 1, T(0));
    return matrix_.data();
  }
  int64_t row_stride() const { return padded(pixels_, 16); }

  // for_each(visit) calls visit(pixel, region, weight) for all entries, and runs twice. Pixels of a region, and regions
  // of a pixel, are in ascending order.
  template <class F>
  void list(int64_t regions, const F& for_each) {
    regions_ = regions;
    if (order_ == ListBy::Block)
      list_by_block(for_each);
    else
      list_by_pixel(for_each);
  }

  WeightsView<T> view() const {
    return {regions_,       matrix_.empty() ? nullptr : matrix_.data(), row_stride(), begin_.data(), runs_.data(),
            entries_.data()};
  }
  int64_t regions() const { return regions_; }

  std::vector<T> totals() const {        // of each region, from a matrix or a list by block
    std::vector<double> sums(regions_);  // float32 cannot count beyond 2^24 pixels
    for (int64_t r = 0; r < regions_ && !matrix_.empty(); r++)
      for (int64_t p = 0; p < pixels_; p++) sums[r] += matrix_[r * row_stride() + p];
    for (size_t i = 0; i + 1 < runs_.size(); i++)
      for (int64_t e = runs_[i].begin; e < runs_[i + 1].begin; e++) sums[runs_[i].region] += entries_[e].weight;
    return {sums.begin(), sums.end()};
  }

 private:
  template <class F>
  void list_by_pixel(const F& for_each) {
    begin_.assign(pixels_ + 2, 0);  // one longer: each pixel's next slot becomes the end of its list
    for_each([&](int64_t pixel, int64_t, T) { begin_[pixel + 2]++; });
    for (int64_t p = 0; p < pixels_; p++) begin_[p + 2] += begin_[p + 1];
    entries_.resize(begin_[pixels_ + 1]);
    for_each(
        [&](int64_t pixel, int64_t region, T weight) { entries_[begin_[pixel + 1]++] = {int32_t(region), weight}; });
  }
  template <class F>
  void list_by_block(const F& for_each) {
    struct Block {
      int64_t region = -1, runs = 0, entries = 0;  // the last region; counts, and later next slots
    };
    std::vector<Block> blocks(pixel_blocks(pixels_));
    const auto block_of = [last = int64_t(blocks.size()) - 1, &blocks](int64_t pixel) -> Block& {
      return blocks[std::min(pixel / PIXEL_BLOCK, last)];
    };
    for_each([&](int64_t pixel, int64_t region, T) {
      Block& block = block_of(pixel);
      block.runs += block.region != region;
      block.region = region;
      block.entries++;
    });
    begin_.assign(1, 0);
    int64_t entries = 0;
    for (Block& block : blocks) {
      const int64_t first = begin_.back();
      begin_.push_back(first + block.runs);
      block = {-1, first - 1, std::exchange(entries, entries + block.entries)};
    }
    runs_.resize(begin_.back() + 1);
    runs_.back() = {0, entries};
    entries_.resize(entries);
    for_each([&](int64_t pixel, int64_t region, T weight) {
      Block& block = block_of(pixel);
      if (block.region != region) runs_[++block.runs] = {block.region = region, block.entries};
      entries_[block.entries++] = {int32_t(pixel), weight};
    });
  }

  int64_t pixels_, regions_ = 0;
  ListBy order_;
  Buffer<T> matrix_;
  std::vector<int64_t> begin_;
  std::vector<typename WeightsView<T>::Run> runs_;
  std::vector<Entry> entries_;
};

// The rows (or columns) that the sample points of a box touch, in ascending order, and their shares of the mean.
template <class T>
class AxisWeights {
 public:
  struct Share {
    int64_t index;
    T weight;
  };
  const std::vector<Share>& compute(T low, T high, const RoiGrid& grid, int64_t bins, int64_t size) {
    shares_.clear();
    const RoiSamples<T> samples(low, high, grid, bins, size);
    finite = samples.finite;
    if (size == 0 || !finite) return shares_;
    dense_.assign(size, T(-1));
    for (int64_t bin = 0; bin < samples.bins; bin++) {
      long long first, last;
      samples.range(bin, T(-1), T(size), &first, &last);
      for (long long i = first, end; i < last; i = end) {
        end = samples.run_end(bin, i, last);
        const T position = samples.position(bin, i), points = T(end - i);
        if (!samples.inside(position)) continue;
        long long row, next;
        T fraction;
        samples.rows(position, &row, &next, &fraction);
        add(row, points * (1 - fraction));
        if (next != row) add(next, points * fraction);
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

// The inner loops of region pooling, compiled once for each instruction set. engine.h includes this file several times,
// each time in a namespace and for a target, with VECTOR_BYTES set. So it has no include guard, and only code that must
// be compiled this way.
//
// Every loop works on features as rows, pixels by channels, in strips of STRIP channels that stay in registers. Maps
// with contiguous channels are read in place. All others, and 16-bit types, pass through a small tile. NCHW is
// transposed in registers on the way.

#include "cpu/region_pool/vectors.h"

constexpr int ROWS = 4, VECTORS = VECTOR_BYTES == 64 ? 4 : 3;  // sums that a product keeps in registers
template <class T>
constexpr int64_t STRIP = VECTORS * LANES<T>;

struct Tile {
  int64_t block, pixel, pixels, channel, channels;  // first and number of pixels, first and number of channels
};

// ---- sums over pixels ----

// The features of a tile as rows, at most STRIP wide: in place, or in `buffer`. Values after the last channel of
// `buffer` are undefined.
template <class S, class T>
MASKCO_REGION_INLINE const T* read_rows(const FeatureMap<const S>& x, const Tile& t, bool in_place, T* buffer,
                                        int64_t& stride) {
  const int64_t p = t.pixel, count = t.pixels, j = t.channel, width = t.channels;
  constexpr int64_t L = LANES<T>;
  if constexpr (std::is_same_v<S, T>) {
    if (in_place && width == STRIP<T>) {
      stride = x.pixels.stride;
      return x.data + p * stride + j;
    }
  }
  stride = STRIP<T>;
  for (int64_t c = 0; c < width; c += L) {
    const int64_t rest = width - c < L ? width - c : L;
    if (x.pixels_side_by_side() && rest == L && count >= L) {
      for (int64_t q = 0; q < count; q += L) {
        const int64_t from = q + L <= count ? q : count - L;  // the last pixels again, rather than one by one
        Vector<T> rows[L];
        for (int64_t l = 0; l < L; l++) load(x.data + (j + c + l) * x.channels.stride + p + from, rows[l]);
        transpose<T>(rows);
        for (int64_t l = 0; l < L; l++) store<T>(rows[l], buffer + (from + l) * STRIP<T> + c);
      }
    } else if (x.channels_side_by_side() && rest == L) {
      for (int64_t q = 0; q < count; q++) {
        Vector<T> row;
        load(x.data + (p + q) * x.pixels.stride + j + c, row);
        store<T>(row, buffer + q * STRIP<T> + c);
      }
    } else {
      for (int64_t l = 0; l < rest; l++) {
        const S* from = x.data + x.channels.offset(j + c + l) + x.pixels.offset(p);
        for (int64_t q = 0, inner = p % x.pixels.inner; q < count; q++, from += x.pixels.stride) {
          buffer[q * STRIP<T> + c + l] = T(*from);
          if (++inner == x.pixels.inner) from += x.pixels.outer_stride - inner * x.pixels.stride, inner = 0;
        }
      }
    }
  }
  return buffer;
}

// sum[i] += Σ_k a[i, k] b[k], rows of J vectors
template <int I, int J, class T>
MASKCO_REGION_INLINE void multiply(const T* a, int64_t a_row, int64_t a_depth, const T* b, int64_t b_depth,
                                   int64_t depth, Vector<T> (&sum)[I][J]) {
  for (int64_t k = 0; k < depth; k++) {
    Vector<T> row[J];
    for (int j = 0; j < J; j++) load(b + k * b_depth + j * LANES<T>, row[j]);
    for (int i = 0; i < I; i++)
      for (int j = 0; j < J; j++) sum[i][j] += a[i * a_row + k * a_depth] * row[j];
  }
}

// sums[r] += Σ_p weight[r, p] row[p]
template <class T>
MASKCO_REGION_INLINE void pool_rows(const WeightsView<T>& weights, const Tile& t, const T* rows, int64_t stride,
                                    T* sums, int64_t sums_stride) {
  constexpr int64_t L = LANES<T>;
  if (weights.matrix) {
    for (int64_t r = 0; r < weights.regions; r += ROWS) {  // (both have spare rows)
      Vector<T> sum[ROWS][VECTORS];
      for (int i = 0; i < ROWS; i++)
        for (int v = 0; v < VECTORS; v++) load(sums + (r + i) * sums_stride + v * L, sum[i][v]);
      multiply<ROWS, VECTORS>(weights.matrix + r * weights.stride + t.pixel, weights.stride, 1, rows, stride, t.pixels,
                              sum);
      for (int i = 0; i < ROWS; i++)
        for (int v = 0; v < VECTORS; v++) store<T>(sum[i][v], sums + (r + i) * sums_stride + v * L);
    }
    return;
  }
  for (int64_t i = weights.begin[t.block]; i < weights.begin[t.block + 1]; i++) {
    T* const to = sums + weights.runs[i].region * sums_stride;
    Vector<T> sum[VECTORS];
    for (int v = 0; v < VECTORS; v++) load(to + v * L, sum[v]);
    for (int64_t e = weights.runs[i].begin; e < weights.runs[i + 1].begin; e++) {
      const T* row = rows + (weights.entries[e].index - t.pixel) * stride;
      for (int v = 0; v < VECTORS; v++) {
        Vector<T> value;
        load(row + v * L, value);
        sum[v] += weights.entries[e].weight * value;
      }
    }
    for (int v = 0; v < VECTORS; v++) store<T>(sum[v], to + v * L);
  }
}

// Prefetches a tile into the second-level cache. It has dozens of rows, more streams than the hardware prefetcher
// follows.
template <class S>
MASKCO_REGION_INLINE void prefetch(const FeatureMap<const S>& x, const Tile& t) {
  constexpr int64_t LINE = 64 / int64_t(sizeof(S));
  const bool across = x.channels_side_by_side();
  const int64_t rows = across ? t.pixels : t.channels, length = across ? t.channels : t.pixels;
  const int64_t stride = across ? x.pixels.stride : x.channels.stride;
  const S* from = x.data + t.pixel * x.pixels.stride + t.channel * x.channels.stride;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < length; i += LINE) __builtin_prefetch(from + r * stride + i, 0, 2);
}

template <class S, class T>
static void pool(const WeightsView<T>& weights, const FeatureMap<const S>& x, int64_t first, int64_t last, T* sums,
                 int64_t sums_stride) {
  const int64_t blocks = last - first, columns = x.channels.size, end = pixel_blocks(x.pixels.size);
  // Blocks of pixels by strips of channels, in the order of memory.
  const int64_t strips = (columns + STRIP<T> - 1) / STRIP<T>, tiles = blocks * strips;
  if (tiles == 0) return;
  const bool across = x.channels_side_by_side();
  // Rows that are a power of two apart share a few cache sets, and lists read some of them many times.
  const bool in_place = across && (weights.matrix || x.pixels.stride * sizeof(T) % 2048 != 0);
  const auto at = [&](int64_t i) __attribute__((always_inline)) {
    const int64_t b = first + (across ? i / strips : i % blocks), p = b * PIXEL_BLOCK;
    const int64_t j = (across ? i % strips : i / blocks) * STRIP<T>;
    return Tile{b, p, b + 1 < end ? PIXEL_BLOCK : x.pixels.size - p, j, std::min(STRIP<T>, columns - j)};
  };
  const auto wanted = [&](const Tile& t) __attribute__((always_inline)) {
    return weights.matrix || weights.begin[t.block] < weights.begin[t.block + 1];
  };
  alignas(64) T buffer[(PIXEL_BLOCK + SHORTEST_BLOCK) * STRIP<T>] = {};
  Tile tile = at(0), next = at(1);
  for (int64_t i = 0; i < tiles; i++) {
    const Tile ahead = at(i + 2);
    if (i + 2 < tiles && wanted(ahead)) prefetch(x, ahead);
    if (wanted(tile)) {
      int64_t stride;
      const T* rows = read_rows(x, tile, in_place, buffer, stride);
      pool_rows(weights, tile, rows, stride, sums + tile.channel, sums_stride);
    }
    tile = next, next = ahead;
  }
}

// ---- the way back ----

// Rows of results: written in place, or made in `stage` and streamed to their place.
template <class S>
struct Output {
  static constexpr int64_t ROWS = 64, COLUMNS = 256;
  S* data;
  int64_t stride;  // of rows
  S* stage;        // [ROWS, COLUMNS], or null

  S* at(int64_t row, int64_t column) const { return stage ? stage : data + row * stride + column; }
  int64_t row_stride() const { return stage ? COLUMNS : stride; }
  void finish(int64_t row, int64_t column, int64_t rows, int64_t columns) const {
    for (int64_t i = 0; stage && i < rows; i++)
      stream(stage + i * COLUMNS, columns, data + (row + i) * stride + column);
  }
};

// Writes `pixels` rows of a tile of channels as rows of `channels`.
template <class S, class T>
MASKCO_REGION_INLINE void write_transposed(const T* rows, int64_t pixels, int64_t channels, S* out, int64_t stride) {
  constexpr int64_t L = LANES<T>;
  for (int64_t c = 0; c < channels; c += L) {
    if (channels - c >= L && pixels >= L) {
      for (int64_t q = 0; q < pixels; q += L) {
        const int64_t from = std::min(q, pixels - L);  // the last pixels again, rather than one by one
        Vector<T> block[L];
        for (int64_t l = 0; l < L; l++) load(rows + (from + l) * STRIP<T> + c, block[l]);
        transpose<T>(block);
        for (int64_t l = 0; l < L; l++) store<T>(block[l], out + (c + l) * stride + from);
      }
    } else {
      for (int64_t l = c; l < channels && l < c + L; l++)
        for (int64_t q = 0; q < pixels; q++) out[l * stride + q] = S(rows[q * STRIP<T> + l]);
    }
  }
}

// out[i] = Σ_k a[k, i] b[k], rows of `columns`. Up to a vector past the end of b may be read.
template <int I, class S, class T>
MASKCO_REGION_INLINE void product_rows(const T* a, int64_t a_depth, const T* b, int64_t b_depth, int64_t depth, S* out,
                                       int64_t out_row, int64_t columns) {
  int64_t j = 0;
  for (; j + STRIP<T> <= columns; j += STRIP<T>) {
    Vector<T> sum[I][VECTORS] = {};
    multiply<I, VECTORS>(a, 1, a_depth, b + j, b_depth, depth, sum);
    for (int i = 0; i < I; i++)
      for (int v = 0; v < VECTORS; v++) store<T>(sum[i][v], out + i * out_row + j + v * LANES<T>);
  }
  for (; j < columns; j += LANES<T>) {
    Vector<T> sum[I][1] = {};
    multiply<I, 1>(a, 1, a_depth, b + j, b_depth, depth, sum);
    for (int i = 0; i < I; i++) store<T>(sum[i][0], out + i * out_row + j, columns - j);
  }
}
template <class S, class T>
MASKCO_REGION_INLINE void product(const T* a, int64_t a_depth, const T* b, int64_t b_depth, int64_t depth,
                                  const Output<S>& out, int64_t rows, int64_t columns) {
  for (int64_t i = 0, count; i < rows; i += count) {
    count = rows - i < ROWS ? 1 : ROWS;
    for (int64_t j = 0; j < columns; j += Output<S>::COLUMNS) {
      const int64_t width = std::min(Output<S>::COLUMNS, columns - j);
      if (count == ROWS)
        product_rows<ROWS>(a + i, a_depth, b + j, b_depth, depth, out.at(i, j), out.row_stride(), width);
      else
        product_rows<1>(a + i, a_depth, b + j, b_depth, depth, out.at(i, j), out.row_stride(), width);
      out.finish(i, j, count, width);
    }
  }
}

// Each pixel sums over the regions that it belongs to.
template <class T>
MASKCO_REGION_INLINE void gather(const WeightsView<T>& weights, int64_t pixel, const T* g, int64_t g_stride,
                                 Vector<T> (&sum)[VECTORS]) {
  for (int v = 0; v < VECTORS; v++) sum[v] = Vector<T>{};
  for (int64_t e = weights.begin[pixel]; e < weights.begin[pixel + 1]; e++) {
    const T* row = g + weights.entries[e].index * g_stride;
    for (int v = 0; v < VECTORS; v++) {
      Vector<T> value;
      load(row + v * LANES<T>, value);
      sum[v] += weights.entries[e].weight * value;
    }
  }
}
template <class S, class T>
MASKCO_REGION_INLINE void gather_rows(const WeightsView<T>& weights, const T* g, int64_t g_stride, int64_t pixels,
                                      int64_t columns, const Output<S>& out) {
  for (int64_t p = 0; p < pixels; p++)
    for (int64_t first = 0; first < columns; first += Output<S>::COLUMNS) {
      const int64_t width = std::min(Output<S>::COLUMNS, columns - first);
      S* const row = out.at(p, first);
      for (int64_t j = 0; j < width; j += STRIP<T>) {
        Vector<T> sum[VECTORS];
        gather(weights, p, g + first + j, g_stride, sum);
        for (int64_t v = 0, i = j; v < VECTORS && i < width; v++, i += LANES<T>) store<T>(sum[v], row + i, width - i);
      }
      out.finish(p, first, 1, width);
    }
}
template <class S, class T>
MASKCO_REGION_INLINE void gather_columns(const WeightsView<T>& weights, const T* g, int64_t g_stride, int64_t pixels,
                                         int64_t columns, const Output<S>& out) {
  constexpr int64_t L = LANES<T>;
  alignas(64) T rows[2 * L * STRIP<T>];
  for (int64_t j = 0; j < columns; j += STRIP<T>)
    for (int64_t first = 0; first < pixels; first += Output<S>::COLUMNS) {
      const int64_t width = std::min(Output<S>::COLUMNS, pixels - first), channels = std::min(STRIP<T>, columns - j);
      S* const to = out.at(j, first);
      for (int64_t p = 0, count; p < width; p += count) {
        count = width - p < 2 * L ? width - p : L;
        for (int64_t q = 0; q < count; q++) {
          Vector<T> sum[VECTORS];
          gather(weights, first + p + q, g + j, g_stride, sum);
          for (int v = 0; v < VECTORS; v++) store<T>(sum[v], rows + q * STRIP<T> + v * L);
        }
        write_transposed(rows, count, channels, to + p, out.row_stride());
      }
      out.finish(j, first, channels, width);
    }
}

// x[p] = Σ_r weight[r, p] g[r]. x is contiguous or channels_last. For `stage` see Output.
template <class S, class T>
static void spread(const WeightsView<T>& weights, const T* g, int64_t g_stride, const FeatureMap<S>& x, S* stage) {
  const int64_t pixels = x.pixels.size, columns = x.channels.size;
  const bool across = x.channels_side_by_side();
  const Output<S> out{x.data, across ? x.pixels.stride : x.channels.stride, stage};
  if (weights.matrix && across)
    product(weights.matrix, weights.stride, g, g_stride, weights.regions, out, pixels, columns);
  else if (weights.matrix)
    product(g, g_stride, weights.matrix, weights.stride, weights.regions, out, columns, pixels);
  else if (across)
    gather_rows(weights, g, g_stride, pixels, columns, out);
  else
    gather_columns(weights, g, g_stride, pixels, columns, out);
  if (stage) end_streams();
}

#define MASKCO_REGION_KERNELS(S, T)                                                                          \
  void pool_##S(const WeightsView<T>& w, const FeatureMap<const S>& x, int64_t first, int64_t last, T* sums, \
                int64_t stride) {                                                                            \
    pool(w, x, first, last, sums, stride);                                                                   \
  }                                                                                                          \
  void spread_##S(const WeightsView<T>& w, const T* g, int64_t stride, const FeatureMap<S>& x, S* stage) {   \
    spread(w, g, stride, x, stage);                                                                          \
  }                                                                                                          \
  template <>                                                                                                \
  RegionKernels<S> kernels<S>() {                                                                            \
    return {STRIP<T>, Output<S>::ROWS * Output<S>::COLUMNS, &pool_##S, &spread_##S};                         \
  }
template <class S>
RegionKernels<S> kernels();
MASKCO_REGION_KERNELS(float, float)
MASKCO_REGION_KERNELS(double, double)
MASKCO_REGION_KERNELS(Half, float)
MASKCO_REGION_KERNELS(BFloat16, float)

#undef MASKCO_REGION_KERNELS
#undef MASKCO_REGION_INLINE

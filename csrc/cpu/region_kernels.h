// The inner loops of region pooling, compiled once per instruction set: region_engine.h includes this file in a
// namespace and under a target each, with VECTOR_BYTES set. So no include guard, and nothing here but what must be
// compiled so.
//
// Every loop sees features as rows, pixels by channels, in strips of STRIP channels that stay in registers. Maps whose
// channels lie side by side are read and written in place; all others, and 16-bit types, pass through a small tile,
// which NCHW enters and leaves by a transposition in registers.

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

constexpr int ROWS = 4, VECTORS = VECTOR_BYTES == 64 ? 4 : 3;  // of sums that a product keeps in registers
template <class T>
constexpr int64_t STRIP = VECTORS * LANES<T>;
constexpr int64_t DENSE_BLOCK = 32;  // pixels of a tile for a product; for lists it is LANES

#define MASKCO_REGION_INLINE static inline __attribute__((always_inline))

// (by reference: a vector as a parameter or result has an ABI that depends on the target)
MASKCO_REGION_INLINE void load(const float* p, Vector<float>& v) { v = *reinterpret_cast<const Vector<float>*>(p); }
MASKCO_REGION_INLINE void load(const double* p, Vector<double>& v) { v = *reinterpret_cast<const Vector<double>*>(p); }
MASKCO_REGION_INLINE void load_bits(const void* p, Vector<uint32_t>& v) {
  typedef uint16_t Half __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));
  v = __builtin_convertvector(*static_cast<const Half*>(p), Vector<uint32_t>);
}
MASKCO_REGION_INLINE void load(const BFloat16* p, Vector<float>& v) {
  Vector<uint32_t> bits;
  load_bits(p, bits);
  v = reinterpret_cast<Vector<float>>(bits << 16);
}
MASKCO_REGION_INLINE void load(const Half* p, Vector<float>& v) {
  Vector<uint32_t> half;
  load_bits(p, half);
  const Vector<uint32_t> sign = (half & 0x8000u) << 16, magnitude = (half & 0x7fffu) << 13;
  const Vector<uint32_t> exponent = magnitude & 0x0f800000u;
  // normal: the exponent gets the wider bias (Inf and NaN the largest one); subnormal: by a subtraction of floats
  const Vector<uint32_t> special = (Vector<uint32_t>)(exponent == 0x0f800000u) & (112u << 23);
  const Vector<uint32_t> normal = magnitude + (112u << 23) + special;
  const Vector<uint32_t> one = magnitude + (113u << 23);
  const Vector<float> small = reinterpret_cast<Vector<float>>(one) - 6.103515625e-05f;  // 2^-14
  const Vector<uint32_t> is_small = (Vector<uint32_t>)(exponent == 0u);
  v = reinterpret_cast<Vector<float>>((is_small & reinterpret_cast<Vector<uint32_t>>(small)) | (~is_small & normal) |
                                      sign);
}
template <class T, class S>
MASKCO_REGION_INLINE void store(const Vector<T>& v, S* p, int64_t count = LANES<T>) {
  if constexpr (std::is_same_v<S, T>) {
    if (count >= LANES<T>) {
      *reinterpret_cast<Vector<T>*>(p) = v;
      return;
    }
  }
  T lanes[LANES<T>];
  *reinterpret_cast<Vector<T>*>(lanes) = v;
  if (count >= LANES<T>) {
    for (int64_t l = 0; l < LANES<T>; l++) p[l] = S(lanes[l]);
  } else {
    for (int64_t l = 0; l < count; l++) p[l] = S(lanes[l]);
  }
}

// The even (ODD 0) or odd units of UNIT lanes of a, then of b, within each group of GROUP lanes.
template <int GROUP, int UNIT, int ODD>
constexpr int unit_lane(int lane, int lanes) {
  const int unit = lane % GROUP / UNIT, half = GROUP / UNIT / 2;
  return unit / half * lanes + lane / GROUP * GROUP + (unit % half * 2 + ODD) * UNIT + lane % UNIT;
}
template <int GROUP, int UNIT, int ODD, class T, size_t... I>
MASKCO_REGION_INLINE void take_units(const Vector<T>& a, const Vector<T>& b, Vector<T>& out,
                                     std::index_sequence<I...>) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12  // that GCC has only its own older builtin
  using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef Index Indices __attribute__((vector_size(sizeof(Vector<T>))));
  out = __builtin_shuffle(a, b, Indices{Index(unit_lane<GROUP, UNIT, ODD>(I, LANES<T>))...});
#else
  out = __builtin_shufflevector(a, b, unit_lane<GROUP, UNIT, ODD>(I, LANES<T>)...);
#endif
}
// A transposition of N by N units in each group, of N rows that lie STEP apart.
template <int GROUP, int UNIT, int STEP, class T>
MASKCO_REGION_INLINE void transpose_units(Vector<T>* rows) {
  constexpr int N = GROUP / UNIT;
  constexpr auto lanes = std::make_index_sequence<LANES<T>>();
  for (int round = 1; round < N; round *= 2) {
    Vector<T> next[N];
    for (int i = 0; i < N / 2; i++) {
      take_units<GROUP, UNIT, 0, T>(rows[2 * i * STEP], rows[(2 * i + 1) * STEP], next[i], lanes);
      take_units<GROUP, UNIT, 1, T>(rows[2 * i * STEP], rows[(2 * i + 1) * STEP], next[i + N / 2], lanes);
    }
    for (int i = 0; i < N; i++) rows[i * STEP] = next[i];
  }
}
template <class T>
MASKCO_REGION_INLINE void transpose(Vector<T> (&rows)[LANES<T>]) {
  constexpr int L = LANES<T>, E = 16 / int(sizeof(T));  // within 16 bytes first: shuffles across are slower on x86
  for (int i = 0; i < L; i += E) transpose_units<E, 1, 1, T>(rows + i);
  if constexpr (L > E)
    for (int i = 0; i < E; i++) transpose_units<L, E, E, T>(rows + i);
}

struct Tile {
  int64_t pixel, pixels, channel, channels;  // first and number
};

// The features of a tile as rows, at most STRIP wide: in place, or in `buffer` (where anything may stand behind the
// last channel).
template <class S, class T>
MASKCO_REGION_INLINE const T* read_rows(const FeatureMap<const S>& x, const Tile& t, T* buffer, int64_t& stride) {
  const int64_t p = t.pixel, count = t.pixels, j = t.channel, width = t.channels;
  constexpr int64_t L = LANES<T>;
  if constexpr (std::is_same_v<S, T>) {
    if (x.channels_side_by_side() && width == STRIP<T>) {
      stride = x.pixels.stride;
      return x.data + p * stride + j;
    }
  }
  stride = STRIP<T>;
  for (int64_t c = 0; c < width; c += L) {
    const int64_t rest = width - c < L ? width - c : L;
    if (x.pixels_side_by_side() && rest == L && count >= L) {
      for (int64_t q = 0; q < count; q += L) {
        const int64_t from = q + L <= count ? q : count - L;  // the last pixels once more rather than one by one
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
// The way back, for a map with its pixels side by side.
template <class S, class T>
MASKCO_REGION_INLINE void write_rows(const T* buffer, const FeatureMap<S>& x, const Tile& t) {
  const int64_t p = t.pixel, count = t.pixels, j = t.channel, width = t.channels;
  constexpr int64_t L = LANES<T>;
  for (int64_t c = 0; c < width; c += L) {
    if (width - c >= L && count >= L) {
      for (int64_t q = 0; q < count; q += L) {
        const int64_t from = q + L <= count ? q : count - L;
        Vector<T> rows[L];
        for (int64_t l = 0; l < L; l++) load(buffer + (from + l) * STRIP<T> + c, rows[l]);
        transpose<T>(rows);
        for (int64_t l = 0; l < L; l++) store<T>(rows[l], x.data + (j + c + l) * x.channels.stride + p + from);
      }
    } else {
      for (int64_t l = c; l < width && l < c + L; l++)
        for (int64_t q = 0; q < count; q++) x.data[(j + l) * x.channels.stride + p + q] = S(buffer[q * STRIP<T> + l]);
    }
  }
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
    for (int64_t r = 0; r < weights.regions; r += ROWS) {  // (both have rows to spare)
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
  for (int64_t q = 0; q < t.pixels; q++)
    for (int64_t e = weights.begin[t.pixel + q]; e < weights.begin[t.pixel + q + 1]; e++) {
      T* const sum = sums + int64_t(weights.entries[e].region) * sums_stride;
      for (int v = 0; v < VECTORS; v++) {
        Vector<T> value, total;
        load(rows + q * stride + v * L, value);
        load(sum + v * L, total);
        total += weights.entries[e].weight * value;
        store<T>(total, sum + v * L);
      }
    }
}

// Into the second-level cache. A tile has dozens of rows, more streams than the hardware follows.
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
  // Blocks of pixels by strips of channels, in the order of memory. A rest of less than a vector of pixels joins the
  // block before it.
  constexpr int64_t L = LANES<T>;
  const int64_t block = weights.matrix ? DENSE_BLOCK : L, columns = x.channels.size;
  const int64_t blocks = last - first < block + L ? 1 : (last - first - L) / block + 1;
  const int64_t strips = (columns + STRIP<T> - 1) / STRIP<T>, tiles = blocks * strips;
  const bool across = x.channels_side_by_side();
  const auto at = [&](int64_t i) __attribute__((always_inline)) {
    if (i >= tiles) return Tile{last, 0, 0, 0};
    const int64_t b = across ? i / strips : i % blocks, j = (across ? i % strips : i / blocks) * STRIP<T>;
    const int64_t p = first + b * block;
    return Tile{p, b + 1 < blocks ? block : last - p, j, columns - j < STRIP<T> ? columns - j : STRIP<T>};
  };
  const auto wanted = [&](const Tile& t) __attribute__((always_inline)) {
    return weights.matrix || weights.begin[t.pixel] < weights.begin[t.pixel + t.pixels];
  };
  alignas(64) T buffer[(DENSE_BLOCK + L) * STRIP<T>] = {};
  Tile tile = at(0), next = at(1);
  for (int64_t i = 0; i < tiles; i++) {
    const Tile ahead = at(i + 2);
    if (wanted(ahead)) prefetch(x, ahead);
    if (wanted(tile)) {
      int64_t stride;
      const T* rows = read_rows(x, tile, buffer, stride);
      pool_rows(weights, tile, rows, stride, sums + tile.channel, sums_stride);
    }
    tile = next, next = ahead;
  }
}

// out[i] = Σ_k a[k, i] b[k], rows of `columns`; b may be read a vector further
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
MASKCO_REGION_INLINE void product(const T* a, int64_t a_depth, const T* b, int64_t b_depth, int64_t depth, S* out,
                                  int64_t out_row, int64_t rows, int64_t columns) {
  int64_t i = 0;
  for (; i + ROWS <= rows; i += ROWS)
    product_rows<ROWS>(a + i, a_depth, b, b_depth, depth, out + i * out_row, out_row, columns);
  for (; i < rows; i++) product_rows<1>(a + i, a_depth, b, b_depth, depth, out + i * out_row, out_row, columns);
}

// x[p] = Σ_r weight[r, p] g[r]: each pixel gathers from the regions that it belongs to
template <class S, class T>
static void spread(const WeightsView<T>& weights, const T* g, int64_t g_stride, const FeatureMap<S>& x) {
  constexpr int64_t L = LANES<T>;
  const int64_t pixels = x.pixels.size, columns = x.channels.size;
  const bool in_place = x.channels_side_by_side();
  if (weights.matrix && in_place)
    return product(weights.matrix, weights.stride, g, g_stride, weights.regions, x.data, x.pixels.stride, pixels,
                   columns);
  if (weights.matrix)
    return product(g, g_stride, weights.matrix, weights.stride, weights.regions, x.data, x.channels.stride, columns,
                   pixels);
  const auto gather = [&](int64_t p, int64_t j, Vector<T>(&sum)[VECTORS]) __attribute__((always_inline)) {
    for (int64_t e = weights.begin[p]; e < weights.begin[p + 1]; e++) {
      const T* row = g + int64_t(weights.entries[e].region) * g_stride + j;
      for (int v = 0; v < VECTORS; v++) {
        Vector<T> value;
        load(row + v * L, value);
        sum[v] += weights.entries[e].weight * value;
      }
    }
  };
  if (in_place) {
    for (int64_t p = 0; p < pixels; p++)
      for (int64_t j = 0; j < columns; j += STRIP<T>) {
        Vector<T> sum[VECTORS] = {};
        gather(p, j, sum);
        for (int64_t v = 0; v < VECTORS && j + v * L < columns; v++)
          store<T>(sum[v], x.data + p * x.pixels.stride + j + v * L, columns - j - v * L);
      }
    return;
  }
  alignas(64) T buffer[2 * L * STRIP<T>];
  for (int64_t j = 0; j < columns; j += STRIP<T>)
    for (int64_t p = 0, count; p < pixels; p += count) {
      count = pixels - p < 2 * L ? pixels - p : L;
      for (int64_t q = 0; q < count; q++) {
        Vector<T> sum[VECTORS] = {};
        gather(p + q, j, sum);
        for (int64_t v = 0; v < VECTORS; v++) store<T>(sum[v], buffer + q * STRIP<T> + v * L);
      }
      write_rows(buffer, x, Tile{p, count, j, columns - j < STRIP<T> ? columns - j : STRIP<T>});
    }
}

#define MASKCO_REGION_KERNELS(S, T)                                                                          \
  void pool_##S(const WeightsView<T>& w, const FeatureMap<const S>& x, int64_t first, int64_t last, T* sums, \
                int64_t stride) {                                                                            \
    pool(w, x, first, last, sums, stride);                                                                   \
  }                                                                                                          \
  void spread_##S(const WeightsView<T>& w, const T* g, int64_t stride, const FeatureMap<S>& x) {             \
    spread(w, g, stride, x);                                                                                 \
  }                                                                                                          \
  template <>                                                                                                \
  RegionKernels<S> kernels<S>() {                                                                            \
    return {STRIP<T>, &pool_##S, &spread_##S};                                                               \
  }
template <class S>
RegionKernels<S> kernels();
MASKCO_REGION_KERNELS(float, float)
MASKCO_REGION_KERNELS(double, double)
MASKCO_REGION_KERNELS(Half, float)
MASKCO_REGION_KERNELS(BFloat16, float)

#undef MASKCO_REGION_KERNELS
#undef MASKCO_REGION_INLINE

// The passes of a fused SE unit over big tensors, on a CPU: what se_lab/units/fused/passes.py defines by plain PyTorch.
//
// A map is (N, C, H, W) in NCHW or channels-last memory, its elements float or bfloat16; coefficients are float, sums
// double, (N, C) both. Every pass reads and writes each of its maps once. Arithmetic is float; sums run in float over a
// thousand elements at most and go on in double, in an order that does not depend on the number of threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct BFloat {
  std::uint16_t bits;
};

inline float wide(float x) { return x; }

inline float wide(BFloat x) {
  const std::uint32_t bits = std::uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void narrow(float x, float& to) { to = x; }

inline void narrow(float x, BFloat& to) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
  to.bits = x != x ? 0x7fc0 : std::uint16_t(rounded);
}

struct Shape {
  long n, c, h, w;
  bool last;  // channels last in memory
  int threads;

  long pixels() const { return h * w; }
};

// Call f(i, k) for each element i of a map, whose coefficient is k.
template <class F>
void each(const Shape& s, const F& pass) {
  const long p = s.pixels();
  const long rows = s.last ? s.n * p : s.n * s.c;
#pragma omp parallel for num_threads(s.threads) schedule(static)
  for (long row = 0; row < rows; ++row) {
    const F f = pass;  // a copy of its own, which the compiler can keep in registers
    if (s.last) {
      const long first = row * s.c, k = row / p * s.c;
#pragma omp simd
      for (long c = 0; c < s.c; ++c) f(first + c, k + c);
    } else {
      const long first = row * p;
#pragma omp simd
      for (long i = 0; i < p; ++i) f(first + i, row);
    }
  }
}

struct Terms {
  float a, b, c;
};

constexpr long run_length = 1024;  // elements of a row that are summed in float
constexpr long run_pixels = 32;   // pixels whose channels are
constexpr long part_pixels = 64;  // pixels at least of a part of an image, where one is shared out
constexpr long parts_wanted = 64;

// Sum, over the pixels of each map, the first K terms of f(i, k) into sums[0..K), (N, C) each. In NCHW, where a map is
// a row, before(k) is called ahead of it.
template <int K, class F, class G>
void sum(const Shape& s, double* const* sums, const F& pass, const G& before) {
  const long p = s.pixels();
  if (!s.last) {
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (long k = 0; k < s.n * s.c; ++k) {
      before(k);
      const F f = pass;  // as in each
      double total[3] = {0, 0, 0};
      for (long start = 0; start < p; start += run_length) {
        const long first = k * p + start, count = std::min(run_length, p - start);
        float a = 0, b = 0, c = 0;
#pragma omp simd reduction(+ : a, b, c)
        for (long i = 0; i < count; ++i) {
          const Terms t = f(first + i, k);
          a += t.a;
          if (K > 1) b += t.b;
          if (K > 2) c += t.c;
        }
        total[0] += a;
        total[1] += b;
        total[2] += c;
      }
      for (int j = 0; j < K; ++j) sums[j][k] = total[j];
    }
    return;
  }
  const long wanted = (parts_wanted + s.n - 1) / s.n;
  const long parts = std::max(1L, std::min(wanted, p / part_pixels));
  const long step = (p + parts - 1) / parts;
  std::vector<double> partial(s.n * parts * K * s.c, 0.0);
#pragma omp parallel num_threads(s.threads)
  {
    std::vector<float> runs(3 * s.c);
    float *a = runs.data(), *b = a + s.c, *c = b + s.c;
#pragma omp for schedule(static)
    for (long part = 0; part < s.n * parts; ++part) {
      const F f = pass;
      const long image = part / parts, begin = part % parts * step, end = std::min(p, begin + step);
      double* total = partial.data() + part * K * s.c;
      const long k = image * s.c;
      for (long start = begin; start < end; start += run_pixels) {
        const long stop = std::min(end, start + run_pixels);
        std::fill(runs.begin(), runs.end(), 0.0f);
        for (long pixel = start; pixel < stop; ++pixel) {  // as they lie in memory
          const long first = (image * p + pixel) * s.c;
#pragma omp simd
          for (long ch = 0; ch < s.c; ++ch) {
            const Terms t = f(first + ch, k + ch);
            a[ch] += t.a;
            if (K > 1) b[ch] += t.b;
            if (K > 2) c[ch] += t.c;
          }
        }
#pragma omp simd
        for (long ch = 0; ch < s.c; ++ch) {
          total[ch] += a[ch];
          if (K > 1) total[s.c + ch] += b[ch];
          if (K > 2) total[2 * s.c + ch] += c[ch];
        }
      }
    }
#pragma omp for schedule(static)
    for (long image = 0; image < s.n; ++image)
      for (int j = 0; j < K; ++j) {
        double* to = sums[j] + image * s.c;
        std::fill(to, to + s.c, 0.0);
        for (long part = image * parts; part < (image + 1) * parts; ++part) {
          const double* from = partial.data() + (part * K + j) * s.c;
          for (long ch = 0; ch < s.c; ++ch) to[ch] += from[ch];
        }
      }
  }
}

template <int K, class F>
void sum(const Shape& s, double* const* sums, const F& pass) {
  sum<K>(s, sums, pass, [](long) {});
}

constexpr long channels_wanted = 128;

// Call pass(s, by, sums), and where a pixel has few channels, with several pixels taken for one that has all of theirs:
// short rows in memory are slow. The coefficients are repeated for it, and its sums added up.
template <int By, int Sums, class F>
void in_long_rows(const Shape& s, const float* const* by, double* const* sums, const F& pass) {
  long times = s.last ? channels_wanted / s.c : 1;
  while (times > 1 && s.pixels() % times) --times;
  if (times < 2) {
    pass(s, by, sums);
    return;
  }
  const long rows = s.n * times;
  std::vector<float> repeated(By * rows * s.c);
  std::vector<double> apart(Sums * rows * s.c);
  const float* many[By + 1];
  double* found[Sums + 1];
  for (int j = 0; j < By; ++j) {
    float* to = repeated.data() + j * rows * s.c;
    for (long row = 0; row < rows; ++row) std::copy_n(by[j] + row / times * s.c, s.c, to + row * s.c);
    many[j] = to;
  }
  for (int j = 0; j < Sums; ++j) found[j] = apart.data() + j * rows * s.c;
  pass(Shape{s.n, times * s.c, 1, s.pixels() / times, true, s.threads}, many, found);
  for (int j = 0; j < Sums; ++j) {
    std::fill_n(sums[j], s.n * s.c, 0.0);
    for (long row = 0; row < rows; ++row)
      for (long c = 0; c < s.c; ++c) sums[j][row / times * s.c + c] += found[j][row * s.c + c];
  }
}

inline float relu(float x) { return x < 0 ? 0.0f : x; }  // what is no number stays none

// A pass takes its maps, coefficients and sums in the order in which passes.py names them, results last.

constexpr long samples = 8;

// Sum each map's differences from a value near by, the mean of a few pixels, and their squares if K is 2, and call
// done(k, near): about such a value little cancels.
template <int K, class T, class F>
void sum_about(const Shape& s, const T* x, double* const* sums, const F& done) {
  const auto terms = [](float off) { return Terms{off, off * off, 0}; };
  const long p = s.pixels(), c = s.c;
  std::vector<float> near(s.n * c, 0.0f);
  float* found = near.data();
  if (s.last) {
    for (long n = 0; n < s.n; ++n)
      for (long j = 0; j < samples; ++j)
        for (long ch = 0; ch < c; ++ch) found[n * c + ch] += wide(x[(n * p + j * p / samples) * c + ch]) / samples;
    const float* by[] = {found};
    in_long_rows<1, K>(s, by, sums, [=](const Shape& s, const float* const* by, double* const* sums) {
      const float* pivot = by[0];
      sum<K>(s, sums, [=](long i, long k) { return terms(wide(x[i]) - pivot[k]); });
    });
  } else {
    sum<K>(
        s, sums, [=](long i, long k) { return terms(wide(x[i]) - found[k]); },
        [=](long k) {
          for (long j = 0; j < samples; ++j) found[k] += wide(x[k * p + j * p / samples]) / samples;
        });
  }
#pragma omp parallel for num_threads(s.threads) schedule(static)
  for (long k = 0; k < s.n * c; ++k) done(k, found[k]);
}

template <class T>
void moments(const Shape& s, void* const* maps, const float* const*, double* const* sums) {
  const double count = double(s.pixels());
  sum_about<2>(s, static_cast<const T*>(maps[0]), sums, [=](long k, float near) {
    const double mean = sums[0][k] / count;
    sums[1][k] = std::max(sums[1][k] / count - mean * mean, 0.0);
    sums[0][k] = near + mean;
  });
}

template <class T>
void mean(const Shape& s, void* const* maps, const float* const*, double* const* sums) {
  const double count = double(s.pixels());
  sum_about<1>(s, static_cast<const T*>(maps[0]), sums, [=](long k, float near) {
    sums[0][k] = near + sums[0][k] / count;
  });
}

template <class T, class F>
void apply_then(const Shape& s, void* const* maps, const float* const* by, const F& activation) {
  const T *x = static_cast<const T*>(maps[0]), *shortcut = static_cast<const T*>(maps[1]);
  T* out = static_cast<T*>(maps[2]);
  const float *centre = by[0], *scale = by[1], *shift = by[2];
  const auto affine = [=](long i, long k) { return scale[k] * (wide(x[i]) - centre[k]) + shift[k]; };
  if (shortcut)
    each(s, [=](long i, long k) { narrow(activation(affine(i, k) + wide(shortcut[i])), out[i]); });
  else
    each(s, [=](long i, long k) { narrow(activation(affine(i, k)), out[i]); });
}

template <class T>
void apply(const Shape& s, void* const* maps, const float* const* by, double* const*) {
  apply_then<T>(s, maps, by, [](float y) { return y; });
}

template <class T>
void apply_relu(const Shape& s, void* const* maps, const float* const* by, double* const*) {
  apply_then<T>(s, maps, by, [](float y) { return relu(y); });
}

template <class T>
void backward_moments(const Shape& s, void* const* maps, const float* const* by, double* const* sums) {
  const T *grad = static_cast<const T*>(maps[0]), *x = static_cast<const T*>(maps[1]);
  const float* centre = by[0];
  sum<2>(s, sums, [=](long i, long k) {
    const float g = wide(grad[i]);
    return Terms{g, g * (wide(x[i]) - centre[k]), 0};
  });
}

template <class T>
void backward_moments_relu(const Shape& s, void* const* maps, const float* const* by, double* const* sums) {
  const T *grad = static_cast<const T*>(maps[0]), *out = static_cast<const T*>(maps[1]);
  const T* x = static_cast<const T*>(maps[2]);
  T* through = static_cast<T*>(maps[3]);
  const float* centre = by[0];
  sum<2>(s, sums, [=](long i, long k) {
    const float given = wide(grad[i]), g = wide(out[i]) > 0 ? given : 0.0f;
    narrow(g, through[i]);
    return Terms{g, g * (wide(x[i]) - centre[k]), 0};
  });
}

template <class T>
void backward_input(const Shape& s, void* const* maps, const float* const* by, double* const*) {
  const T *g = static_cast<const T*>(maps[0]), *x = static_cast<const T*>(maps[1]);
  T* dx = static_cast<T*>(maps[2]);
  const float *centre = by[0], *p = by[1], *q = by[2], *r = by[3];
  each(s, [=](long i, long k) { narrow(p[k] * wide(g[i]) + q[k] * (wide(x[i]) - centre[k]) + r[k], dx[i]); });
}

template <class T>
void activated_moments(const Shape& s, void* const* maps, const float* const* by, double* const* sums) {
  const T* x = static_cast<const T*>(maps[0]);
  const float *centre = by[0], *scale = by[1], *shift = by[2];
  sum<3>(s, sums, [=](long i, long k) {
    const float off = wide(x[i]) - centre[k], u = relu(scale[k] * off + shift[k]), on = u > 0 ? 1.0f : 0.0f;
    return Terms{u, on, on * off};
  });
}

template <class T>
void gate_activated(const Shape& s, void* const* maps, const float* const* by, double* const*) {
  const T* x = static_cast<const T*>(maps[0]);
  T* out = static_cast<T*>(maps[1]);
  const float *centre = by[0], *scale = by[1], *shift = by[2], *gate = by[3];
  each(s, [=](long i, long k) { narrow(gate[k] * relu(scale[k] * (wide(x[i]) - centre[k]) + shift[k]), out[i]); });
}

template <class T>
void backward_gate_moments(const Shape& s, void* const* maps, const float* const* by, double* const* sums) {
  const T *grad = static_cast<const T*>(maps[0]), *x = static_cast<const T*>(maps[1]);
  const float *centre = by[0], *scale = by[1], *shift = by[2];
  sum<3>(s, sums, [=](long i, long k) {
    const float off = wide(x[i]) - centre[k], u = relu(scale[k] * off + shift[k]);
    const float given = wide(grad[i]), on = u > 0 ? given : 0.0f;
    return Terms{on * u, on, on * off};
  });
}

template <class T>
void backward_gate_input(const Shape& s, void* const* maps, const float* const* by, double* const*) {
  const T *grad = static_cast<const T*>(maps[0]), *x = static_cast<const T*>(maps[1]);
  T* dx = static_cast<T*>(maps[2]);
  const float *centre = by[0], *scale = by[1], *shift = by[2], *p = by[3], *constant = by[4], *q = by[5], *r = by[6];
  each(s, [=](long i, long k) {
    const float off = wide(x[i]) - centre[k];
    const float given = p[k] * wide(grad[i]) + constant[k];
    const float through = scale[k] * off + shift[k] > 0 ? given : 0.0f;
    narrow(through + (q[k] * off + r[k]), dx[i]);
  });
}

}  // namespace

#define RUN(name, T, By, Sums)                                                                            \
  if (By == 0)                                                                                            \
    name<T>(s, maps, by, sums);                                                                           \
  else                                                                                                    \
    in_long_rows<By, Sums>(s, by, sums, [=](const Shape& s, const float* const* by, double* const* sums) { \
      name<T>(s, maps, by, sums);                                                                         \
    })

#define PASS(name, By, Sums)                                                                                        \
  extern "C" void se_lab_##name(int wide, long n, long c, long h, long w, int last, int threads, void* const* maps, \
                                const float* const* by, double* const* sums) {                                      \
    const Shape s{n, c, h, w, last != 0, threads};                                                                  \
    if (wide) {                                                                                                     \
      RUN(name, float, By, Sums);                                                                                   \
    } else {                                                                                                        \
      RUN(name, BFloat, By, Sums);                                                                                  \
    }                                                                                                               \
  }

// With how many coefficients and sums; the first two see to long rows themselves.
PASS(moments, 0, 0)
PASS(mean, 0, 0)
PASS(apply, 3, 0)
PASS(apply_relu, 3, 0)
PASS(backward_moments, 1, 2)
PASS(backward_moments_relu, 1, 2)
PASS(backward_input, 4, 0)
PASS(activated_moments, 3, 3)
PASS(gate_activated, 4, 0)
PASS(backward_gate_moments, 3, 3)
PASS(backward_gate_input, 7, 0)

// As many multiply-adds per second as one core does, in independent chains that stay in registers; and as many floats
// per second as it writes one after the other.
//
// Each chain is acc = acc * factor + addend: unlike acc + a * b, no compiler can take the product out of the loop.
// Compiled with -DKERF_PEAK_CHAINS (chains, which hide the latency of the multiply-add and fit the registers) and
// -DKERF_PEAK_LENGTH (the widest vector in floats).
#include <stdint.h>

namespace {

template <int LENGTH>
struct Float;
template <>
struct Float<4> {
  typedef float Vector __attribute__((vector_size(16), aligned(4), may_alias));
};
template <>
struct Float<8> {
  typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
};
template <>
struct Float<16> {
  typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
};

template <int LENGTH>
void multiply_add(int64_t rounds, float factor, float addend, float *out) {
  typedef typename Float<LENGTH>::Vector Vector;
  Vector acc[KERF_PEAK_CHAINS];
  const Vector factors = Vector{} + factor, addends = Vector{} + addend;
#pragma GCC unroll 64
  for (int chain = 0; chain < KERF_PEAK_CHAINS; ++chain) acc[chain] = addends * static_cast<float>(chain + 1);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 64
    for (int chain = 0; chain < KERF_PEAK_CHAINS; ++chain) acc[chain] = acc[chain] * factors + addends;
  }
  Vector sum = acc[0];
#pragma GCC unroll 64
  for (int chain = 1; chain < KERF_PEAK_CHAINS; ++chain) sum += acc[chain];
  *reinterpret_cast<Vector *>(out) = sum;
}

template <int LENGTH>
void fill(int64_t rounds, float *out, int64_t count) {
  typedef typename Float<LENGTH>::Vector Vector;
  for (int64_t round = 0; round < rounds; ++round) {
    const Vector value = Vector{} + static_cast<float>(round);
    int64_t i = 0;
    for (; i + LENGTH <= count; i += LENGTH) *reinterpret_cast<Vector *>(out + i) = value;
    for (; i < count; ++i) out[i] = value[0];
    // Every round is kept: nothing is known about who reads it.
    __asm__ volatile("" : : "r"(out) : "memory");
  }
}

}  // namespace

// Runs `rounds` rounds of KERF_PEAK_CHAINS multiply-adds on vectors of `length` floats (16, 8 or 4), and writes what they
// add up to into `out`. Returns the floating-point operations done, or 0 where the length is not compiled in.
extern "C" int64_t kerf_bench_peak(int32_t length, int64_t rounds, float factor, float addend, float *out) {
#if KERF_PEAK_LENGTH >= 16
  if (length == 16) multiply_add<16>(rounds, factor, addend, out);
#endif
#if KERF_PEAK_LENGTH >= 8
  if (length == 8) multiply_add<8>(rounds, factor, addend, out);
#endif
  if (length == 4) multiply_add<4>(rounds, factor, addend, out);
  return length <= KERF_PEAK_LENGTH ? 2 * rounds * KERF_PEAK_CHAINS * length : 0;
}

// Writes `count` floats to `out`, `rounds` times over, in the widest vectors.
extern "C" void kerf_bench_fill(int64_t rounds, float *out, int64_t count) {
  fill<KERF_PEAK_LENGTH>(rounds, out, count);
}

// What this processor can run. Compilers' own helpers for this live in run-time libraries that Kerf does without.
#ifndef KERF_CPU_H
#define KERF_CPU_H

#include <stdint.h>

namespace {

#if defined(__x86_64__)

struct CpuidResult {
  uint32_t eax, ebx, ecx, edx;
};

static inline CpuidResult cpuid(uint32_t leaf, uint32_t subleaf) {
  CpuidResult r;
  __asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
  return r;
}

static inline bool has_bits(uint32_t value, uint32_t bits) { return (value & bits) == bits; }

// Register states that the operating system saves: XCR0, Intel SDM volume 1, section 13.3.
static inline uint32_t saved_states() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Bits of CPUID leaves 1 and 7: Intel SDM volume 2, instruction CPUID.
static inline bool cpu_supports(int32_t isa) {
  if (isa == KERF_ISA_BASELINE) return true;
  if (cpuid(0, 0).eax < 7) return false;
  const uint32_t features = cpuid(1, 0).ecx, extended = cpuid(7, 0).ebx;
  const uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, avx2 = 1u << 5;
  const uint32_t ymm_states = 0x6;
  if (!has_bits(features, fma | osxsave | avx) || !has_bits(extended, avx2)) return false;
  const uint32_t saved = saved_states();
  if (!has_bits(saved, ymm_states)) return false;
  if (isa == KERF_ISA_AVX2) return true;
  const uint32_t avx512f = 1u << 16, avx512dq = 1u << 17, avx512bw = 1u << 30, avx512vl = 1u << 31;
  const uint32_t zmm_states = 0xe6;
  return isa == KERF_ISA_AVX512 && has_bits(extended, avx512f | avx512dq | avx512bw | avx512vl) &&
         has_bits(saved, zmm_states);
}

#else

static inline bool cpu_supports(int32_t isa) { return isa == KERF_ISA_BASELINE; }

#endif

}  // namespace

#endif

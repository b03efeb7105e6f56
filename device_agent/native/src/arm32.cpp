// What compilers call on 32-bit ARM by the names of its run-time ABI (ARM IHI 0043, sections 4.2 and 4.3.4).
#if defined(__arm__)

#include "memory.h"

#define KERF_INTERNAL extern "C" __attribute__((visibility("hidden"), used))

KERF_INTERNAL void __aeabi_memcpy(void *to, const void *from, size_t n) { memcpy(to, from, n); }
KERF_INTERNAL void __aeabi_memcpy4(void *to, const void *from, size_t n) { memcpy(to, from, n); }
KERF_INTERNAL void __aeabi_memcpy8(void *to, const void *from, size_t n) { memcpy(to, from, n); }
KERF_INTERNAL void __aeabi_memset(void *to, size_t n, int value) { memset(to, value, n); }
KERF_INTERNAL void __aeabi_memset4(void *to, size_t n, int value) { memset(to, value, n); }
KERF_INTERNAL void __aeabi_memset8(void *to, size_t n, int value) { memset(to, value, n); }
KERF_INTERNAL void __aeabi_memclr(void *to, size_t n) { memset(to, 0, n); }
KERF_INTERNAL void __aeabi_memclr4(void *to, size_t n) { memset(to, 0, n); }
KERF_INTERNAL void __aeabi_memclr8(void *to, size_t n) { memset(to, 0, n); }

struct Division {
  uint64_t quotient, remainder;
};

// Binary long division: rare, so short code is worth more than speed. Dividing by zero gives all ones.
static Division divide_unsigned(uint64_t a, uint64_t b) {
  Division result = {0, 0};
  for (int bit = 63; bit >= 0; bit--) {
    result.remainder = result.remainder << 1 | (a >> bit & 1);
    if (result.remainder >= b) {
      result.remainder -= b;
      result.quotient |= (uint64_t)1 << bit;
    }
  }
  return result;
}

KERF_INTERNAL uint64_t kerf_divide_unsigned(uint64_t a, uint64_t b, uint64_t *remainder) {
  const Division result = divide_unsigned(a, b);
  *remainder = result.remainder;
  return result.quotient;
}

KERF_INTERNAL int64_t kerf_divide_signed(int64_t a, int64_t b, int64_t *remainder) {
  const Division result = divide_unsigned(a < 0 ? -(uint64_t)a : (uint64_t)a, b < 0 ? -(uint64_t)b : (uint64_t)b);
  *remainder = (int64_t)(a < 0 ? -result.remainder : result.remainder);
  return (int64_t)((a < 0) != (b < 0) ? -result.quotient : result.quotient);
}

// The ABI wants the quotient in r0:r1 and the remainder in r2:r3, which no C function returns.
#define KERF_DIVISION(name, function)                                                       \
  KERF_INTERNAL __attribute__((naked)) void name(void) {                                     \
    __asm__ volatile(                                                                        \
        "push {r4, lr}\n sub sp, sp, #16\n add r4, sp, #8\n str r4, [sp]\n bl " function "\n" \
        "ldr r2, [sp, #8]\n ldr r3, [sp, #12]\n add sp, sp, #16\n pop {r4, pc}");            \
  }
KERF_DIVISION(__aeabi_ldivmod, "kerf_divide_signed")
KERF_DIVISION(__aeabi_uldivmod, "kerf_divide_unsigned")

#endif

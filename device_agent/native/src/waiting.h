// Spinning, giving way and sleeping until a word of memory changes, by system calls of Linux that need no C library.
//
// Where the processor or system is another one, nothing gives way or sleeps, and waiting spins.
#ifndef KERF_WAITING_H
#define KERF_WAITING_H

#include <stdint.h>

namespace {

// A system call with up to four arguments, the last of them 0. Its result does not matter to any caller here.
static inline void system_call(long number, long first, long second, long third) {
#if defined(__x86_64__)
  register long fourth __asm__("r10") = 0;
  __asm__ volatile("syscall"
                   : "+a"(number)
                   : "D"(first), "S"(second), "d"(third), "r"(fourth)
                   : "rcx", "r11", "memory");
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = first;
  register long x1 __asm__("x1") = second;
  register long x2 __asm__("x2") = third;
  register long x3 __asm__("x3") = 0;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
#elif defined(__arm__)
  // r7, where the number goes, may be the frame pointer, which no constraint can name.
  register long r0 __asm__("r0") = first;
  register long r1 __asm__("r1") = second;
  register long r2 __asm__("r2") = third;
  register long r3 __asm__("r3") = 0;
  register long r4 __asm__("r4") = number;
  __asm__ volatile("mov r12, r7\n mov r7, r4\n svc 0\n mov r7, r12"
                   : "+r"(r0)
                   : "r"(r1), "r"(r2), "r"(r3), "r"(r4)
                   : "r12", "memory");
#else
  (void)number, (void)first, (void)second, (void)third;
#endif
}

#if defined(__linux__) && defined(__x86_64__)
enum { CALL_FUTEX = 202, CALL_YIELD = 24, CAN_SLEEP = 1 };
#elif defined(__linux__) && defined(__aarch64__)
enum { CALL_FUTEX = 98, CALL_YIELD = 124, CAN_SLEEP = 1 };
#elif defined(__linux__) && defined(__arm__)
enum { CALL_FUTEX = 240, CALL_YIELD = 158, CAN_SLEEP = 1 };
#else
enum { CALL_FUTEX = 0, CALL_YIELD = 0, CAN_SLEEP = 0 };
#endif
enum { FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129 };  // linux/futex.h: operation | FUTEX_PRIVATE_FLAG

// Sleeps unless *word is no longer `value`; may wake for no reason.
static inline void sleep_while(const uint32_t *word, uint32_t value) {
  if (CAN_SLEEP) system_call(CALL_FUTEX, (long)word, FUTEX_WAIT_PRIVATE, (long)value);
}

static inline void wake_all(const uint32_t *word) {
  if (CAN_SLEEP) system_call(CALL_FUTEX, (long)word, FUTEX_WAKE_PRIVATE, 0x7fffffff);
}

// Lets another thread have this core, if one waits for it.
static inline void give_way() {
  if (CAN_SLEEP) system_call(CALL_YIELD, 0, 0, 0);
}

// One turn of a loop that waits: leaves the core's execution units to its other hardware thread.
static inline void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __asm__ volatile("pause");
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");
#else
  __asm__ volatile("" ::: "memory");
#endif
}

}  // namespace

#endif

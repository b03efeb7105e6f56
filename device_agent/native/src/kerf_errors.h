// The codes that the library's functions return, and what each one says. No error is reported in any other way.
//
// 0 is success. A positive number is 1 + the index of a step that the chosen backend cannot run. Codes are never reused.
#ifndef KERF_ERRORS_H
#define KERF_ERRORS_H

// X(name, code, text)
#define KERF_ERRORS(X)                                                                                                \
  X(KERF_OK, 0, "no error")                                                                                            \
  X(KERF_ERROR_BACKEND, -1, "there is no backend of this number: numbers are 0 .. kerf_num_backends() - 1")            \
  X(KERF_ERROR_COUNT, -2, "a number of steps, runs or rounds is negative")                                             \
  X(KERF_ERROR_CLOCK, -3, "the clock that was passed failed")

#define KERF_ERROR_CODE(name, code, text) name = code,
enum KerfError { KERF_ERRORS(KERF_ERROR_CODE) };
#undef KERF_ERROR_CODE

#endif

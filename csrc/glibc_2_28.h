// Included first in every source of `make wheel`. A manylinux_2_28 wheel may use glibc 2.28 and the libstdc++ of GCC 8:
// what a newer compiler would take from newer ones is bound to its older version, or defined here.
#pragma once

#include <new>

__asm__(".symver dlsym,dlsym@GLIBC_2.2.5");
__asm__(".symver exp,exp@GLIBC_2.2.5");

// Of glibc 2.32, read by shared_ptr. Zero: several threads may run.
extern "C" __attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;

// Instantiate the templates of <sstream> here: those in libstdc++ grew with GCC 9 and 11.
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0

namespace std {
// Of GCC 11.
[[noreturn]] __attribute__((weak, visibility("hidden"))) void __throw_bad_array_new_length() {
  throw bad_array_new_length();
}
}  // namespace std

/* What the compiler and the CPU have of NEON beyond AArch64's baseline. dispatch.c and the isa_neon_*.c that need more include this file. */
#ifndef FI_NEON_FEATURES_H
#define FI_NEON_FEATURES_H

/* Whether the compiler has the dot instructions, and the matrix instructions of Armv8.6, where only the target of a function asks for them.
   Before LLVM 16, arm_neon.h hides both from such functions. Apple's clang 15 is LLVM 16; its target has the dot instructions anyway. */
#if !defined(__clang__)
#define NEON_DOT 1
#define NEON_I8MM (__GNUC__ >= 10)
#elif defined(__apple_build_version__)
#define NEON_DOT 1
#define NEON_I8MM (__clang_major__ >= 15)
#else
#define NEON_DOT (__clang_major__ >= 16)
#define NEON_I8MM (__clang_major__ >= 16)
#endif

/* What the CPU has. Linux reports it in bits; macOS by names, which older versions of it do not know. */
#if defined(__linux__)
#include <sys/auxv.h>
static inline int has_dot(void) { return getauxval(AT_HWCAP) >> 20 & 1; }   /* HWCAP_ASIMDDP */
static inline int has_i8mm(void) { return getauxval(AT_HWCAP2) >> 13 & 1; } /* HWCAP2_I8MM */
static inline int has_bf16(void) { return getauxval(AT_HWCAP2) >> 14 & 1; } /* HWCAP2_BF16 */
#elif defined(__APPLE__)
#include <stddef.h>
#include <sys/sysctl.h>
static inline int reported(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value != 0;
}
static inline int has_dot(void) { return 1; } /* all of Apple's CPUs for macOS */
static inline int has_i8mm(void) { return reported("hw.optional.arm.FEAT_I8MM"); }
static inline int has_bf16(void) { return reported("hw.optional.arm.FEAT_BF16"); }
#else
static inline int has_dot(void) { return 0; }
static inline int has_i8mm(void) { return 0; }
static inline int has_bf16(void) { return 0; }
#endif

#endif

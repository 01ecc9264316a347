/* A host may have told its floating-point unit to flush subnormals to zero, to round otherwise or to trap, and OpenMP's
   threads may have inherited that. Between enter and leave it does as IEEE 754 and C say by default; then it is as the
   host left it, its flags included. */
#ifndef LNORM_FPENV_H
#define LNORM_FPENV_H

#if defined(__SSE2__) || defined(_M_X64)

#include <xmmintrin.h>

typedef unsigned lnorm_fpenv;

enum { LNORM_MXCSR = 0x1f80, LNORM_MXCSR_FLAGS = 0x3f }; /* all exceptions masked; the flags that results leave */

static inline lnorm_fpenv lnorm_fp_enter(void)
{
    unsigned host = _mm_getcsr();
    if ((host & ~(unsigned)LNORM_MXCSR_FLAGS) != LNORM_MXCSR)
        _mm_setcsr(LNORM_MXCSR);
    return host;
}

static inline void lnorm_fp_leave(lnorm_fpenv host)
{
    if (_mm_getcsr() != host)
        _mm_setcsr(host);
}

#elif defined(__aarch64__) && defined(__GNUC__)

#include <stdint.h>

typedef struct {
    uint64_t control, flags;
} lnorm_fpenv;

static inline lnorm_fpenv lnorm_fp_get(void)
{
    lnorm_fpenv env;
    __asm__ __volatile__("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(env.control), "=r"(env.flags) : : "memory");
    return env;
}

static inline lnorm_fpenv lnorm_fp_enter(void)
{
    lnorm_fpenv host = lnorm_fp_get();
    if (host.control)
        __asm__ __volatile__("msr fpcr, %0" : : "r"((uint64_t)0) : "memory");
    return host;
}

static inline void lnorm_fp_leave(lnorm_fpenv host)
{
    lnorm_fpenv now = lnorm_fp_get();
    if (now.control != host.control)
        __asm__ __volatile__("msr fpcr, %0" : : "r"(host.control) : "memory");
    if (now.flags != host.flags)
        __asm__ __volatile__("msr fpsr, %0" : : "r"(host.flags) : "memory");
}

#else

#include <fenv.h>

typedef fenv_t lnorm_fpenv;

static inline lnorm_fpenv lnorm_fp_enter(void)
{
    fenv_t host;
    fegetenv(&host);
    fesetenv(FE_DFL_ENV);
    return host;
}

static inline void lnorm_fp_leave(lnorm_fpenv host) { fesetenv(&host); }

#endif
#endif

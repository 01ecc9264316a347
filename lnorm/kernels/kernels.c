/* The instruction sets: which there are, which of them run here, and the one source compiled for each. */
#include "kernels.h"
#include "walk.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LNORM_PASTE(name, isa, type) name##_##isa##_##type
#define LNORM_JOIN(name, isa, type) LNORM_PASTE(name, isa, type)
#define LNORM_PRAGMA(x) _Pragma(#x)

#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define PREFETCH(p) __builtin_prefetch(p, 0, 3)
#define PREFETCH_TO_WRITE(p) __builtin_prefetch(p, 1, 2)
#define PREFETCH_FAR(p) __builtin_prefetch(p, 0, 2) /* to the second level: the first has room for less */
#define KNOWN(condition) ((condition) ? (void)0 : __builtin_unreachable()) /* though the compiler cannot see it */
#else
#define INLINE static inline
#define NOINLINE
#define PREFETCH(p) (void)(p)
#define PREFETCH_TO_WRITE(p) (void)(p)
#define PREFETCH_FAR(p) (void)(p)
#define KNOWN(condition) (void)(condition)
#endif

/* Lanes of a row's sums: wide enough for four registers of AVX2 or two of AVX-512, and short rows still fill them. The
   number is part of the result: another one gives other bits. */
#define LANES 32

/* Elements of a row whose mean the sums are centred on: two of each lane. */
#define CENTER (2 * LANES)

enum { LINE = 64, PAGE = 4096 }; /* bytes of a cache line, and of a page */

enum { SETTLED, FAR_FROM_MEAN, OUT_OF_RANGE }; /* bits of a row's state */

/* What the sums of columns are of. */
enum { FIRST, ALL_SHORT, ALL, BACKWARD };

/* Rows taken together, whose lane trees, divisions and roots cost little more than those of one: sixteen of at most LANES
   elements, eight of at most FEW; four of less than APART bytes, beyond which their lines push each other out of the first-level
   cache, while they are near; two, if they share registers of scale and offset; else one, whose next a processor fetches by
   itself. Without registers, one. */
#define ROWS 16
#define FEW 256
#define APART (1 << 12)
#define ALONE 384          /* Shorter rows to memory are written while the next is summed. */
#define ROOM (1 << 20)     /* bytes of x that find room in the second level, beside as many of y */
#define DISTANT (4 * ROOM) /* bytes of x from which on rows are not near */
#define IN_TURN (7 << 10)  /* Four rows of so many bytes are written in turn, because scale and offset are as long: */
#define IN_TURN_MOST (ROOM / 4)     /* they come from the second level once for all, which holds the rows */
#define GROUP (W > ROWS ? W : ROWS) /* rows of one Stats: those, or a register full of columns */

/* Bytes between what is read and what is fetched for later. */
#define AHEAD (1 << 13)

/* Whether the next row is fetched while one is written around the caches: 0.6 to 0.9 of the time with AVX2 (Zen 3), but more than
   without it with AVX-512 (Zen 4); and in narrower registers arithmetic takes longer than memory. */
#define FETCH_NEXT (BYTES == 32)

/* Pages of memory that a processor is made to read at once; see fetch_pages. (16: even; 4: up to 1.03; 2: 1.1 to 1.2 of the time.) */
enum { PAGES = 8 };

/* Bytes of the next rows that are fetched at most, while some are at hand: more would push these out. */
#define FETCHED (12 << 10)

/* Elements in a cache line. */
#define NARROW (LINE / T_SIZE)

/* Elements of columns that are written at a time: their scales and offsets take up to half of the registers, which in narrower
   sets are half as many. */
#define ABREAST (BYTES == 64 ? 4 : 2)

/* Registers of scale and of offset that are held for all rows of a group: half of those of AVX-512. Fewer are kept on the stack, where
   they are aligned. */
#define HELD 8

/* Elements of a short row; see stats.h. */
#define SHORT 96

#if defined(__GNUC__) && (defined(__x86_64__) || defined(_M_X64))
#define LNORM_X86
#include <immintrin.h>
#endif

#ifdef __clang__
#define UNROLL LNORM_PRAGMA(unroll)
#elif defined(__GNUC__)
#define UNROLL LNORM_PRAGMA(GCC unroll 16)
#else
#define UNROLL
#endif

/* Lanes of two vectors of doubles, chosen by constant indices. */
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (I){__VA_ARGS__})
#endif

#ifdef LNORM_X86
/* streaming stores are not ordered with the stores that tell another thread that we are done */
#define FENCE(streamed)   \
    do {                  \
        if (streamed)     \
            _mm_sfence(); \
    } while (0)
#else
#define FENCE(streamed) (void)(streamed)
#endif

#ifdef __clang__
#define REGION(features) LNORM_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define REGION_END LNORM_PRAGMA(clang attribute pop)
#else
#define REGION(features)           \
    LNORM_PRAGMA(GCC push_options) \
    LNORM_PRAGMA(GCC target(features))
#define REGION_END LNORM_PRAGMA(GCC pop_options)
#endif

/* Of bytes that are read now, as many are asked for as they are, to the second level: in the PAGES pages that come after those around
   them, a line of each page in turn. A processor then reads ahead in all of these at once, where from one page after the other it
   takes 1.2 to 1.4 of the time, asked for or not (Sapphire Rapids). */
INLINE void fetch_pages(const void *from, ptrdiff_t bytes)
{
    enum { AROUND = PAGES * PAGE, SHARE = PAGES * LINE };
    const char *p = (const char *)from + -(uintptr_t)from % SHARE;
    for (; p < (const char *)from + bytes; p += SHARE) {
        const uintptr_t in = (uintptr_t)p % AROUND;
        const char *line = p + (AROUND - in) + in / SHARE * LINE;
        for (int k = 0; k < PAGES; k++)
            PREFETCH_FAR(line + k * PAGE);
    }
}

#ifdef LNORM_X86
#define ISA v4
#define BYTES 64
REGION("avx2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")
#include "variant.h"
REGION_END
#undef ISA
#undef BYTES

#define ISA v3
#define BYTES 32
REGION("avx2")
#include "variant.h"
REGION_END
#undef ISA
#undef BYTES
#endif

#if defined(LNORM_X86) || (defined(__GNUC__) && defined(__aarch64__))
#define ISA v128
#define BYTES 16
#include "variant.h"
#undef ISA
#undef BYTES
#endif

#define ISA one
#define BYTES 0
#include "variant.h"
#undef ISA
#undef BYTES

#ifdef LNORM_X86
static int has_v3(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");
}

static int has_v4(void)
{
    __builtin_cpu_init();
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

static int always(void) { return 1; }

/* In turn, rows from memory take 0.65 to 0.8 of the time on Intel (Emerald Rapids), and 1.6 times as long on AMD (Zen 4). */
int lnorm_takes_turns(void)
{
#ifdef LNORM_X86
    __builtin_cpu_init();
    return __builtin_cpu_is("intel") != 0;
#else
    return 0;
#endif
}

#define KERNELS(isa, type, in_turn) \
    {forward_##isa##_##type,        \
     long_sums_##isa##_##type,      \
     long_stats_##isa##_##type,     \
     long_write_##isa##_##type,     \
     backward_sums_##isa##_##type,  \
     backward_sweep_##isa##_##type, \
     in_turn}

const lnorm_isa lnorm_isas[] = {
#ifdef LNORM_X86
    {"x86-64-v4", has_v4, KERNELS(v4, float, backward_in_turn_v4_float),
     KERNELS(v4, double, backward_in_turn_v4_double)},
    {"x86-64-v3", has_v3, KERNELS(v3, float, backward_in_turn_v3_float),
     KERNELS(v3, double, backward_in_turn_v3_double)},
    {"x86-64", always, KERNELS(v128, float, NULL), KERNELS(v128, double, NULL)},
#elif defined(__GNUC__) && defined(__aarch64__)
    {"aarch64", always, KERNELS(v128, float, NULL), KERNELS(v128, double, NULL)},
#endif
    {"generic", always, KERNELS(one, float, NULL), KERNELS(one, double, NULL)},
};
const int lnorm_isa_count = sizeof lnorm_isas / sizeof *lnorm_isas;

const char *lnorm_compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

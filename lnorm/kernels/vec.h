/* What a vector is, for one element type T and one register width of BYTES (0: no vectors, one lane).
   V holds W elements of T, D holds DW doubles; one V widens to PARTS of D. */

#define W (BYTES ? BYTES / T_SIZE : 1)
#define DW (BYTES ? BYTES / 8 : 1)
#define PARTS (W / DW)
#define U (LANES / W)   /* registers for one row of lanes */
#define DU (LANES / DW) /* the same, in double precision */

#undef SPLAT
#if BYTES
/* aligned to the element only: rows start anywhere. */
typedef T V __attribute__((vector_size(BYTES), aligned(T_SIZE), may_alias));
typedef double D __attribute__((vector_size(BYTES), aligned(8), may_alias));
#define SPLAT(s) ((s) - (V){0})
#else
typedef T V;
typedef double D;
#define SPLAT(s) (s)
#endif

INLINE V load(const T *p) { return *(const V *)p; }
INLINE void store(T *p, V v) { *(V *)p = v; }

INLINE void widen(D *wide, V v)
{
#if BYTES
    typedef double All __attribute__((vector_size(BYTES / T_SIZE * 8)));
    union {
        All v;
        D d[PARTS];
    } all = {__builtin_convertvector(v, All)};
    for (int i = 0; i < PARTS; i++)
        wide[i] = all.d[i];
#else
    *wide = v;
#endif
}

/* Writes around the caches; p is aligned to BYTES. */
INLINE void stream_to(T *p, V v)
{
#if defined(LNORM_X86) && BYTES == 64 && T_SIZE == 4
    _mm512_stream_ps(p, (__m512)v);
#elif defined(LNORM_X86) && BYTES == 64
    _mm512_stream_pd(p, (__m512d)v);
#elif defined(LNORM_X86) && BYTES == 32 && T_SIZE == 4
    _mm256_stream_ps(p, (__m256)v);
#elif defined(LNORM_X86) && BYTES == 32
    _mm256_stream_pd(p, (__m256d)v);
#elif defined(LNORM_X86) && BYTES == 16 && T_SIZE == 4
    _mm_stream_ps(p, (__m128)v);
#elif defined(LNORM_X86) && BYTES == 16
    _mm_stream_pd(p, (__m128d)v);
#else
    store(p, v);
#endif
}

/* Elements from p to the next address that is a multiple of bytes. */
INLINE ptrdiff_t until_aligned(const T *p, uintptr_t bytes) { return (ptrdiff_t)(-(uintptr_t)p % bytes) / T_SIZE; }

/* The lane tree: lane l takes lane l + h for h = LANES/2 ... 1. The same additions whatever the width of a register,
   which is what makes the bits the same everywhere. */
INLINE double fold(const D *lanes)
{
    D t[DU];
    for (int i = 0; i < DU; i++)
        t[i] = lanes[i];
    for (int h = DU / 2; h; h /= 2)
        for (int i = 0; i < h; i++)
            t[i] += t[i + h];
#if BYTES == 64
    union {
        D d;
        lnorm_d4 h[2];
    } a = {t[0]};
    union {
        lnorm_d4 d;
        lnorm_d2 h[2];
    } b = {a.h[0] + a.h[1]};
    lnorm_d2 c = b.h[0] + b.h[1];
    return c[0] + c[1];
#elif BYTES == 32
    union {
        D d;
        lnorm_d2 h[2];
    } b = {t[0]};
    lnorm_d2 c = b.h[0] + b.h[1];
    return c[0] + c[1];
#elif BYTES == 16
    return t[0][0] + t[0][1];
#else
    return t[0];
#endif
}

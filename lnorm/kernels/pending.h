/* A row that is written around the caches while the next one is summed: memory is read and written at once. */

#define XHAT(x, k, r, c) (((x) - (k)) * (r) - (c))
#define AFFINE(x, k, r, c, g, b) (XHAT(x, k, r, c) * (g) + (b))

/* Its elements at <= j < end, in whole lines. Scale and offset are at hand for some of them: a block, or all. */
typedef struct {
    T *y;
    const T *x;
    ptrdiff_t at, end;
    T k, r, c;
    View *vscale, *voffset;
    const char *scales, *offsets; /* of the whole row */
    const T *scale, *offset;      /* from element held_at to held_end */
    ptrdiff_t held_at, held_end;
} Pending;

INLINE void hold_parameters(Pending *row)
{
    const int whole = row->vscale->op->contiguous && row->voffset->op->contiguous;
    const ptrdiff_t left = row->end - row->at, m = whole || left < LNORM_BLOCK ? left : LNORM_BLOCK;
    row->held_at = row->at;
    row->held_end = row->at + m;
    row->scale = get(row->vscale, row->scales, row->at, m, 0);
    row->offset = get(row->voffset, row->offsets, row->at, m, 0);
}

/* m elements, at most four lines. They are loaded before one is written: where y stands a little ahead of x modulo a page, no load
   waits for a store. */
INLINE void write_lines(T *y, const T *x, const T *scale, const T *offset, V k, V r, V c, int m)
{
    V v[4 * NARROW / W];
    UNROLL for (int l = 0; l < m; l += W) v[l / W] = load(x + l);
    UNROLL for (int l = 0; l < m; l += W)
        stream_to(y + l, AFFINE(v[l / W], k, r, c, load(scale + l), load(offset + l)));
}

/* At most m elements, of those for which scale and offset are at hand. */
INLINE void write_held(Pending *row, ptrdiff_t m)
{
    if (row->at == row->held_end)
        hold_parameters(row);
    const V k = SPLAT(row->k), r = SPLAT(row->r), c = SPLAT(row->c);
    const ptrdiff_t stop = row->at + m < row->held_end ? row->at + m : row->held_end;
    const T *x = row->x, *scale = row->scale, *offset = row->offset;
    T *const y = row->y;
    const ptrdiff_t held_at = row->held_at;
    ptrdiff_t j = row->at;
    for (; j + 4 * NARROW <= stop; j += 4 * NARROW)
        write_lines(y + j, x + j, scale + (j - held_at), offset + (j - held_at), k, r, c, 4 * NARROW);
    for (; j < stop; j += NARROW)
        write_lines(y + j, x + j, scale + (j - held_at), offset + (j - held_at), k, r, c, NARROW);
    row->at = stop;
}

/* As much of it as is summed of the next row at a time, four of each lane; and the rest. */
INLINE void write_some(Pending *row)
{
    if (row->at < row->end)
        write_held(row, 4 * LANES);
}

INLINE void write_rest(Pending *row)
{
    while (row->at < row->end)
        write_held(row, LNORM_BLOCK);
}

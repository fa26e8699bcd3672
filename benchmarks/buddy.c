/* A plain C buddy allocator of the rules and the data structure of memdesc.model.buddy: circular
 * lists of u32 links whose heads lie behind the frames, one byte per frame, a type per pageblock.
 * benchmarks/model.py compiles it and runs it beside the model, and compares what both hand out.
 * Rules: mm/page_alloc.c:__rmqueue_smallest, expand, __free_one_page @6.12. */

#include <stdint.h>
#include <stdlib.h>

enum { MAX_ORDER = 10, BLOCK_ORDER = 9, TYPES = 8, ORDERS = 16, FREE = 1 << 4, USED = 2 << 4 };
enum { HIGHATOMIC = 3, ISOLATE = 4 };

struct buddy {
	uint32_t *next, *prev;
	uint8_t *frame, *block, *block_zone;
	int64_t free[2], free_highatomic[2], nr_free[2][ORDERS];
	uint64_t frames;
};

static inline uint32_t list_of(const struct buddy *b, int zone, int order, int type)
{
	return b->frames + (((zone << 4) + order) << 3) + type;
}

static inline void push(struct buddy *b, uint32_t item, uint32_t pfn)
{
	uint32_t first = b->next[item];
	b->next[pfn] = first;
	b->prev[pfn] = item;
	b->prev[first] = pfn;
	b->next[item] = pfn;
}

static inline void push_tail(struct buddy *b, uint32_t item, uint32_t pfn)
{
	uint32_t last = b->prev[item];
	b->next[pfn] = item;
	b->prev[pfn] = last;
	b->next[last] = pfn;
	b->prev[item] = pfn;
}

static inline void unlink_block(struct buddy *b, uint32_t pfn)
{
	uint32_t after = b->next[pfn], before = b->prev[pfn];
	b->next[before] = after;
	b->prev[after] = before;
}

static inline void account(struct buddy *b, int zone, int64_t frames, int type)
{
	if (type < HIGHATOMIC) {
		b->free[zone] += frames;
	} else if (type != ISOLATE) {
		b->free[zone] += frames;
		b->free_highatomic[zone] += frames;
	}
}

static inline int64_t take(struct buddy *b, int zone, int order, int type)
{
	int high = order;
	uint32_t item = list_of(b, zone, order, type), pfn = b->next[item];

	while (pfn == item) {
		if (++high > MAX_ORDER)
			return -1;
		item += TYPES;
		pfn = b->next[item];
	}
	/* The first of a list: what lies before it is the head, and need not be read. */
	b->next[item] = b->next[pfn];
	b->prev[b->next[pfn]] = item;
	b->frame[pfn] = 0;
	b->nr_free[zone][high]--;
	account(b, zone, -(1 << order), type);
	while (high > order) {
		uint32_t half = pfn + (1u << --high);
		item -= TYPES;
		b->frame[half] = FREE | high;
		b->nr_free[zone][high]++;
		push(b, item, half);
	}
	return pfn;
}

static inline void give(struct buddy *b, int zone, uint32_t pfn, int order, int type, int to_tail)
{
	account(b, zone, 1 << order, type);
	while (order < MAX_ORDER) {
		uint32_t buddy = pfn ^ (1u << order);
		if (b->frame[buddy] != (FREE | order))
			break;
		if (order >= BLOCK_ORDER) {
			int other = b->block[buddy >> BLOCK_ORDER];
			if (b->block_zone[buddy >> BLOCK_ORDER] != zone)
				break;
			if (other != type) {
				if (type >= HIGHATOMIC || other >= HIGHATOMIC)
					break;
				for (uint32_t i = 0; i < 1u << (order - BLOCK_ORDER); i++)
					b->block[(buddy >> BLOCK_ORDER) + i] = type;
			}
		}
		unlink_block(b, buddy);
		b->frame[buddy] = 0;
		b->nr_free[zone][order]--;
		pfn &= buddy;
		order++;
	}
	b->frame[pfn] = FREE | order;
	b->nr_free[zone][order]++;
	if (!to_tail && order < MAX_ORDER - 1) {
		uint32_t uncle = (pfn & ~(1u << order)) ^ (2u << order);
		if (b->frame[uncle] == (FREE | (order + 1)) &&
		    (order + 1 < BLOCK_ORDER || b->block_zone[uncle >> BLOCK_ORDER] == zone))
			to_tail = 1;
	}
	if (to_tail)
		push_tail(b, list_of(b, zone, order, type), pfn);
	else
		push(b, list_of(b, zone, order, type), pfn);
}

void buddy_destroy(struct buddy *b)
{
	if (!b)
		return;
	free(b->next);
	free(b->prev);
	free(b->frame);
	free(b->block);
	free(b->block_zone);
	free(b);
}

/* Frames [0, frames) are free, all of type 1; frames is a multiple of 1024. NULL: no memory. */
struct buddy *buddy_create(uint64_t frames)
{
	struct buddy *b = calloc(1, sizeof(*b));
	uint64_t lists = 2 * ORDERS * TYPES, blocks = frames >> BLOCK_ORDER;

	if (!b)
		return NULL;
	b->frames = frames;
	b->next = calloc(frames + lists, sizeof(uint32_t));
	b->prev = calloc(frames + lists, sizeof(uint32_t));
	b->frame = calloc(frames, 1);
	b->block = calloc(blocks, 1);
	b->block_zone = calloc(blocks, 1);
	if (!b->next || !b->prev || !b->frame || !b->block || !b->block_zone) {
		buddy_destroy(b);
		return NULL;
	}
	for (uint64_t i = frames; i < frames + lists; i++)
		b->next[i] = b->prev[i] = i;
	for (uint64_t i = 0; i < blocks; i++)
		b->block[i] = 1;
	for (uint64_t pfn = 0; pfn < frames; pfn += 1u << MAX_ORDER)
		give(b, 0, pfn, MAX_ORDER, 1, 1);
	return b;
}

/* As memdesc.model.buddy.churn. */
int64_t buddy_churn(struct buddy *b, const int8_t *ops, int64_t n, int zone, int type, int64_t *stack)
{
	int64_t live = 0, total = 0;

	for (int64_t i = 0; i < n; i++) {
		if (ops[i] >= 0) {
			int64_t pfn = take(b, zone, ops[i], type);
			if (pfn >= 0) {
				b->frame[pfn] = USED | ops[i];
				stack[live++] = pfn;
				total = (total * 31 + pfn) & 0xFFFFFFFF;
			}
		} else if (live > 0) {
			int64_t pfn = stack[--live];
			int order = b->frame[pfn] & 15;
			b->frame[pfn] = 0;
			give(b, zone, pfn, order, b->block[pfn >> BLOCK_ORDER], 0);
		}
	}
	return total;
}

// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Looks whether what MPI transfers over UCX is what was sent: ping-pong, allreduce
 * and alltoall of some sizes. Each rank prints what it has found.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <mpi.h>

#define MOST (4UL << 20)
#define ROUNDS 5

static int rank, ranks;

static void die(const char *what, size_t size)
{
	fprintf(stderr, "mpi_check: rank %d: %s of %zu bytes\n", rank, what, size);
	MPI_Abort(MPI_COMM_WORLD, 1);
}

static unsigned char byte(int from, int to, size_t at)
{
	return (from * 31 + to * 17 + at + (at >> 8) * 7 + (at >> 16) * 13) & 0xff;
}

static void fill(unsigned char *to, size_t size, int from, int dest)
{
	size_t i;

	for (i = 0; i < size; i++)
		to[i] = byte(from, dest, i);
}

static int is_as(const unsigned char *bytes, size_t size, int from, int dest)
{
	size_t i;

	for (i = 0; i < size; i++)
		if (bytes[i] != byte(from, dest, i))
			return 0;
	return 1;
}

/* Between neighbours, of which each even one begins. */
static void ping_pong(unsigned char *out, unsigned char *in, size_t size)
{
	int peer = rank ^ 1, i;

	for (i = 0; i < ROUNDS; i++) {
		fill(out, size, rank, peer);
		if (!(rank & 1))
			MPI_Send(out, size, MPI_BYTE, peer, i, MPI_COMM_WORLD);
		MPI_Recv(in, size, MPI_BYTE, peer, i, MPI_COMM_WORLD,
			 MPI_STATUS_IGNORE);
		if (rank & 1)
			MPI_Send(out, size, MPI_BYTE, peer, i, MPI_COMM_WORLD);
		if (!is_as(in, size, peer, rank))
			die("a message", size);
	}
}

static void allreduce(unsigned char *out, unsigned char *in, size_t size)
{
	uint64_t *mine = (uint64_t *)out, *sums = (uint64_t *)in, want;
	size_t i, count = size / sizeof(*mine);

	for (i = 0; i < count; i++)
		mine[i] = i * (rank + 1);
	MPI_Allreduce(mine, sums, count, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
	for (i = 0; i < count; i++) {
		want = i * ranks * (ranks + 1) / 2;
		if (sums[i] != want)
			die("allreduce", size);
	}
}

static void alltoall(unsigned char *out, unsigned char *in, size_t size)
{
	size_t part = size / ranks;
	int i;

	for (i = 0; i < ranks; i++)
		fill(out + i * part, part, rank, i);
	MPI_Alltoall(out, part, MPI_BYTE, in, part, MPI_BYTE, MPI_COMM_WORLD);
	for (i = 0; i < ranks; i++)
		if (!is_as(in + i * part, part, i, rank))
			die("alltoall", size);
}

int main(int argc, char **argv)
{
	static const size_t sizes[] = { 8, 4096, 65536, 1 << 20, MOST, 0 };
	unsigned char *out, *in;
	size_t i;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	if (ranks & 1)
		die("an odd number of ranks, and none", 0);
	MPI_Alloc_mem(MOST, MPI_INFO_NULL, &out);
	MPI_Alloc_mem(MOST, MPI_INFO_NULL, &in);
	for (i = 0; sizes[i]; i++) {
		ping_pong(out, in, sizes[i]);
		allreduce(out, in, sizes[i]);
		alltoall(out, in, sizes[i]);
	}
	MPI_Free_mem(out);
	MPI_Free_mem(in);
	printf("rank %d of %d: all is as it was sent\n", rank, ranks);
	MPI_Finalize();
	return 0;
}

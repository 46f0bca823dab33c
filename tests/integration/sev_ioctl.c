/* One raw ioctl on a file, as any C program issues it; prints what came of it as one JSON object.
 *
 *   sev_ioctl FILE FLAGS REQUEST ARGUMENT CMD ERROR DATA SIZE [HEX]
 *
 * FILE      a path, or fd:N for an inherited descriptor
 * FLAGS     of open(2), a number
 * ARGUMENT  envelope, readonly (an envelope that cannot be written), null, edge (half of it is mapped), compat (by the
 *           32-bit system call)
 * DATA      what the envelope points to: buffer, readonly, null, unmapped, getid2 (the 12-byte structure with address 0)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct __attribute__((packed)) envelope { uint32_t cmd; uint64_t data; uint32_t error; };

static unsigned char *pages(int low)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | (low ? MAP_32BIT : 0);
	unsigned char *at = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (at == MAP_FAILED || munmap(at + 2 * 4096, 4096))
		exit(3);
	return at;
}

int main(int argc, char **argv)
{
	if (argc < 9)
		return 2;
	int compat = !strcmp(argv[4], "compat");
	int fd = strncmp(argv[1], "fd:", 3) ? open(argv[1], (int)strtoul(argv[2], NULL, 0)) : atoi(argv[1] + 3);
	if (fd < 0) {
		printf("{\"open\": %d}\n", errno);
		return 0;
	}
	size_t size = strtoul(argv[8], NULL, 0);
	unsigned char *data = pages(compat), *memory = pages(compat);
	if (size > 8192)
		return 2;
	for (size_t at = 0; argc > 9 && at < size && argv[9][2 * at]; at++)
		sscanf(argv[9] + 2 * at, "%2hhx", data + at);
	uint64_t address = (uintptr_t)data;
	if (!strcmp(argv[7], "null"))
		address = 0;
	else if (!strcmp(argv[7], "unmapped"))
		address = (uintptr_t)data + 2 * 4096;
	else if (!strcmp(argv[7], "readonly") && mprotect(data, 2 * 4096, PROT_READ))
		return 3;
	struct envelope *given = (void *)memory;
	if (!strcmp(argv[4], "edge"))
		given = (void *)(memory + 2 * 4096 - 8);
	unsigned char wanted[16];
	*(struct envelope *)wanted = (struct envelope){ (uint32_t)strtoul(argv[5], NULL, 0), address, (uint32_t)strtoul(argv[6], NULL, 0) };
	memcpy(given, wanted, !strcmp(argv[4], "edge") ? 8 : 16);
	if (!strcmp(argv[4], "readonly") && mprotect(memory, 2 * 4096, PROT_READ))
		return 3;
	void *argument = !strcmp(argv[4], "null") ? NULL : given;
	unsigned long request = strtoul(argv[3], NULL, 0);
	long result;
	int number = 0;
	if (compat) {
		__asm__ volatile("int $0x80" : "=a"(result)
				 : "a"(54), "b"(fd), "c"(request), "d"((uint32_t)(uintptr_t)argument)
				 : "memory", "r8", "r9", "r10", "r11");
		result = (int)result;
		if (result < 0) {
			number = (int)-result;
			result = -1;
		}
	} else {
		result = ioctl(fd, request, argument);
		number = result < 0 ? errno : 0;
	}
	printf("{\"result\": %ld, \"errno\": %d, \"envelope\": \"", result, number);
	for (int at = 0; at < (strcmp(argv[4], "edge") ? 16 : 8); at++)
		printf("%02x", ((unsigned char *)given)[at]);
	printf("\", \"address\": %llu, \"data\": \"", (unsigned long long)address);
	for (size_t at = 0; at < size; at++)
		printf("%02x", data[at]);
	printf("\"}\n");
	return 0;
}

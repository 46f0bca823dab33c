/* Raw requests on a sev-guest file, as any C program issues them; one JSON object a line.
 *
 *   guest_ioctl FILE CASE...
 *
 * A case: report, key, probe (no buffer for certificates), extended (16 KiB for them), version0, unknown, noreq, noresp,
 * badreq, badresp (addresses that are not mapped), badcerts, readonly (a structure that cannot be written), thread (a
 * report asked for by a second thread), child (by a forked child).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sev-guest.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint64_t MARK = 0x5a5a5a5aa5a5a5a5;
static int fd;

static void hex(const char *name, const unsigned char *data, size_t size)
{
	printf(", \"%s\": \"", name);
	for (size_t at = 0; at < size; at++)
		printf("%02x", data[at]);
	printf("\"");
}

static void *one(void *name)
{
	const char *what = name;
	static unsigned char certs[0x4000];
	unsigned char response[4000];
	struct snp_ext_report_req request;
	struct snp_derived_key_req key;
	struct snp_guest_request_ioctl *in = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned long number = SNP_GET_REPORT;

	memset(certs, 0xdd, sizeof(certs));
	memset(response, 0xee, sizeof(response));
	memset(&request, 0, sizeof(request));
	memset(&key, 0, sizeof(key));
	for (unsigned at = 0; at < 64; at++)
		request.data.user_data[at] = at;
	in->msg_version = 1;
	in->req_data = (uintptr_t)&request;
	in->resp_data = (uintptr_t)response;
	in->exitinfo2 = MARK;
	if (!strcmp(what, "key")) {
		number = SNP_GET_DERIVED_KEY;
		in->req_data = (uintptr_t)&key;
	} else if (!strcmp(what, "probe")) {
		number = SNP_GET_EXT_REPORT;
		request.certs_address = UINT64_MAX;
	} else if (!strcmp(what, "extended") || !strcmp(what, "badcerts")) {
		number = SNP_GET_EXT_REPORT;
		request.certs_address = strcmp(what, "badcerts") ? (uintptr_t)certs : 4096;
		request.certs_len = sizeof(certs);
	} else if (!strcmp(what, "version0"))
		in->msg_version = 0;
	else if (!strcmp(what, "unknown"))
		number = _IOWR('S', 9, struct snp_guest_request_ioctl);
	else if (!strcmp(what, "noreq"))
		in->req_data = 0;
	else if (!strcmp(what, "noresp"))
		in->resp_data = 0;
	else if (!strcmp(what, "badreq"))
		in->req_data = 4096;
	else if (!strcmp(what, "badresp"))
		in->resp_data = 4096;
	else if (!strcmp(what, "readonly")) {
		in->req_data = 0;
		mprotect(in, 4096, PROT_READ);
	}
	int result = ioctl(fd, number, in);
	int error = result < 0 ? errno : 0;
	printf("{\"case\": \"%s\", \"result\": %d, \"errno\": %d, \"exitinfo2\": %llu, \"certs_len\": %u", what, result, error,
	       (unsigned long long)in->exitinfo2, request.certs_len);
	hex("response", response, sizeof(response));
	hex("certs", certs, sizeof(certs));
	printf("}\n");
	fflush(stdout);
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc < 2 || (fd = open(argv[1], O_RDONLY)) < 0)
		return 2;
	for (int at = 2; at < argc; at++) {
		if (!strcmp(argv[at], "thread")) {
			pthread_t thread;
			if (pthread_create(&thread, NULL, one, argv[at]) || pthread_join(thread, NULL))
				return 3;
		} else if (!strcmp(argv[at], "child")) {
			pid_t pid = fork();
			if (pid == 0) {
				one(argv[at]);
				_exit(0);
			}
			if (pid < 0 || waitpid(pid, NULL, 0) != pid)
				return 3;
		} else
			one(argv[at]);
	}
	return 0;
}

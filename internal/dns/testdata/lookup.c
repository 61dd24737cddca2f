// Prints the addresses of names, as getaddrinfo gives them.
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
	for (int i = 1; i < argc; i++) {
		struct addrinfo hints, *list, *a;
		memset(&hints, 0, sizeof hints);
		hints.ai_socktype = SOCK_STREAM;
		int err = getaddrinfo(argv[i], "80", &hints, &list);
		if (err) {
			printf("%s: %s\n", argv[i], err == EAI_NONAME ? "none" : gai_strerror(err));
			continue;
		}
		printf("%s:", argv[i]);
		for (a = list; a; a = a->ai_next) {
			char text[INET6_ADDRSTRLEN];
			void *addr = a->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr
			                                     : (void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr;
			printf(" %s", inet_ntop(a->ai_family, addr, text, sizeof text));
		}
		printf("\n");
		freeaddrinfo(list);
	}
	return 0;
}

/* What keeps the namespaces of a pod: waits to be told to end, and reaps what is left to it as pid 1 of a pod. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal) {
  (void)signal;
  _exit(0);
}

static void reap(int signal) {
  (void)signal;
  while (waitpid(-1, 0, WNOHANG) > 0) {
  }
}

int main(void) {
  struct sigaction onEnd = {.sa_handler = end};
  struct sigaction onChild = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
  if (sigaction(SIGTERM, &onEnd, 0) || sigaction(SIGINT, &onEnd, 0) || sigaction(SIGCHLD, &onChild, 0)) return 1;
  for (;;) pause();
}

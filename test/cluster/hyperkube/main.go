// One binary for every Kubernetes program that the cluster tests need: linking them once instead of six times
// saves a gigabyte and most of the build. The first argument, or the name it is called by, says which one runs.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// Made when asked for only: building a command registers flags and metrics that the others have too.
var programs = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllers.NewControllerManagerCommand,
	"kube-proxy":              proxy.NewProxyCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubectl":                 cmd.NewDefaultKubectlCommand,
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
}

func main() {
	argv := os.Args
	argv[0] = filepath.Base(argv[0])
	if programs[argv[0]] == nil && len(argv) > 1 {
		argv = argv[1:]
	}
	make, known := programs[argv[0]]
	if !known {
		names := slices.Sorted(maps.Keys(programs))
		fmt.Fprintf(os.Stderr, "hyperkube: cannot tell which program to run: name one of %s\n", strings.Join(names, ", "))
		os.Exit(2)
	}
	os.Args = argv // kubectl and cobra read the arguments from here
	os.Exit(cli.Run(make()))
}

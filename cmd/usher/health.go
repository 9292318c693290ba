package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"example.org/usher/web"
)

func healthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask a running worker whether it is healthy",
		Long: `health asks /healthz, or /readyz with --ready, of a worker, and exits with 0 if the answer is ok. A container's health check runs it, for want of a shell.
A simulator answers /healthz too, where it listens.`,
		Example: `  usher health --http 127.0.0.1:9090 --ready`,
		Args:    cobra.NoArgs,
	}
	address := cmd.Flags().String("http", "127.0.0.1:9090", "where the worker serves /healthz")
	ready := cmd.Flags().Bool("ready", false, "ask /readyz instead")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		path := "/healthz"
		if *ready {
			path = "/readyz"
		}
		if err := web.Check(cmd.Context(), *address, path); err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), "ok")
		return nil
	}
	return cmd
}

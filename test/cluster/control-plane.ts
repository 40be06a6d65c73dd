import { join } from 'node:path'
import { inNamespace } from '../lab/network.ts'
import { signalIn } from '../lab/processes.ts'
import { mustRun } from '../lab/shell.ts'
import type { Artifacts } from './build.ts'
import { blaming, startDaemon } from './daemons.ts'
import { addresses, cgroupIn, clusterDomain, namespaceIn, type Place, serviceCidr } from './layout.ts'

const awaitOk = join(import.meta.dirname, 'await-ok.ts')
const readySeconds = 60
const etcdUrl = 'http://127.0.0.1:2379'

/** What the parts of a cluster need to know of it. */
export interface Site {
  cluster: string
  /** All that the cluster writes is in here. */
  folder: string
  artifacts: Artifacts
}

export async function startControlPlane(site: Site): Promise<void> {
  await start(site, 'etcd', etcd(site))
  await startApiServer(site)
  await Promise.all([
    start(site, 'controller-manager', controllerManager(site)),
    start(site, 'scheduler', scheduler(site)),
  ])
}

/** Resolves once /readyz is ok. */
export async function startApiServer(site: Site): Promise<void> {
  await start(site, 'apiserver', apiServer(site))
  const url = 'https://127.0.0.1:6443/readyz'
  await blaming(site.folder, 'apiserver', 'start the API server', untilOk(site, 'cloud', url))
}

/** At once, as a crash would; etcd keeps the data. */
export async function killApiServer(site: Site): Promise<void> {
  await signalIn(site.folder, 'apiserver', 'KILL')
}

/** Waits, inside the place's network, until the URL answers 200. */
export async function untilOk(site: Site, place: Place, url: string): Promise<void> {
  const argv = [process.execPath, awaitOk, url, String(readySeconds), pki(site, 'ca.crt')]
  await mustRun(inNamespace(namespaceIn(site.cluster, place), argv), {
    timeoutMs: (readySeconds + 10) * 1_000,
  })
}

export function pki({ folder }: Site, file: string): string {
  return join(folder, 'pki', file)
}

async function start(site: Site, part: string, argv: readonly string[]): Promise<void> {
  await startDaemon(site.folder, {
    part,
    cgroup: cgroupIn(site.cluster, 'control'),
    argv: inNamespace(namespaceIn(site.cluster, 'cloud'), argv),
  })
}

/** Nothing of it has to survive a power cut, so it never waits for the disk. */
function etcd({ folder, artifacts }: Site): string[] {
  const peers = 'http://127.0.0.1:2380'
  return [
    join(artifacts.debian, 'usr/bin/etcd'),
    '--unsafe-no-fsync',
    '--log-level=warn',
    `--data-dir=${join(folder, 'etcd')}`,
    `--listen-client-urls=${etcdUrl}`,
    `--advertise-client-urls=${etcdUrl}`,
    `--listen-peer-urls=${peers}`,
    `--initial-advertise-peer-urls=${peers}`,
    `--initial-cluster=default=${peers}`,
  ]
}

function apiServer(site: Site): string[] {
  return [
    site.artifacts.hyperkube,
    'kube-apiserver',
    `--etcd-servers=${etcdUrl}`,
    `--advertise-address=${addresses.cloud}`,
    '--secure-port=6443',
    '--allow-privileged=true',
    '--authorization-mode=Node,RBAC',
    '--enable-admission-plugins=NodeRestriction',
    // A webhook behind a Service is then called at its endpoint, whether or not kube-proxy knows it yet.
    '--enable-aggregator-routing=true',
    `--service-cluster-ip-range=${serviceCidr}`,
    `--client-ca-file=${pki(site, 'ca.crt')}`,
    `--tls-cert-file=${pki(site, 'apiserver.crt')}`,
    `--tls-private-key-file=${pki(site, 'apiserver.key')}`,
    `--kubelet-client-certificate=${pki(site, 'kubelet-client.crt')}`,
    `--kubelet-client-key=${pki(site, 'kubelet-client.key')}`,
    '--kubelet-preferred-address-types=InternalIP',
    `--service-account-issuer=https://kubernetes.default.svc.${clusterDomain}`,
    `--service-account-key-file=${pki(site, 'service-accounts.pub')}`,
    `--service-account-signing-key-file=${pki(site, 'service-accounts.key')}`,
  ]
}

/** A node that is not heard of for 12 s is NotReady, instead of for 50: tests wait for it. */
function controllerManager(site: Site): string[] {
  return [
    site.artifacts.hyperkube,
    'kube-controller-manager',
    `--kubeconfig=${pki(site, 'controller-manager.kubeconfig')}`,
    '--leader-elect=false',
    '--node-monitor-period=2s',
    '--node-monitor-grace-period=12s',
    `--root-ca-file=${pki(site, 'ca.crt')}`,
    `--service-account-private-key-file=${pki(site, 'service-accounts.key')}`,
    '--use-service-account-credentials=true',
  ]
}

function scheduler(site: Site): string[] {
  return [
    site.artifacts.hyperkube,
    'kube-scheduler',
    `--kubeconfig=${pki(site, 'scheduler.kubeconfig')}`,
    '--leader-elect=false',
  ]
}

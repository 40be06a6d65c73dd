import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process'
import { randomBytes, randomUUID } from 'node:crypto'
import { chownSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { copyFile, readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { stringify } from 'yaml'
import { ports, SIDECAR_UID } from '#shared/ports.ts'
import type { NatKind } from './nat.ts'
import {
  deleteNamespaces,
  forgetConnections,
  makeNetwork,
  makePod,
  namespaceOf,
  namespacesOf,
  routeThroughDelay,
  setUplink,
} from './network.ts'
import {
  appFolder,
  bundledScripts,
  commandIn,
  type Daemon,
  labError,
  labsFolder,
  logIn,
  makeBundle,
  nodeCommand,
  pidIn,
  type Signal,
  serverEnvironment,
  serverFlags,
  sidecarEnvironment,
  sidecarFlags,
  signalIn,
  startIn,
  warmCompileCache,
} from './processes.ts'
import { collect, type Output } from './shell.ts'
import { issuer, makeKeys, signToken } from './tokens.ts'
import {
  clusterIPs,
  dnsAddress,
  type Layout,
  type NatSite,
  natLayout,
  nodeOf,
  type PodSpec,
  podManifest,
  type ServiceSpec,
  serverAddress,
  serviceCidrs,
  serviceManifests,
  standardLayout,
} from './topology.ts'

export interface UpOptions {
  /** Default: a name that is not taken. */
  name?: string
  /** Round-trip time of the internet segment in ms; 0 for none added. */
  rttMs?: number
  /** Fraction of the packets crossing the internet that get lost, 0 to 1. The same ones for the same seed. */
  loss?: number
  seed?: number
  /** Instead of the edge site two, `a` and `b`, with one pod each behind a NAT of this kind. Default: `port`. */
  natA?: NatKind
  natB?: NatKind
  /** Instead of the edge site these. */
  natSites?: readonly NatSite[]
  /** Nodes of a site have no routes to each other's pods; everything that leaves a node is masqueraded. */
  noCni?: boolean
  /**
   * What the cables to a site's nodes carry, in kbit/s. Where packets take no time, two SYNs never cross unless both ends
   * run at once, which a machine with one core to spare does not do.
   */
  lanKbit?: number
  /** More ports of the services `edge` and `cloud`. */
  ports?: readonly number[]
  /** A folder of more manifests for the server. */
  manifests?: string
  /** Server replicas: 1, or 2 on two ports of mkmaster1. */
  replicas?: 1 | 2
  /** More options of the server, as `--leaf-lifetime 30s`. */
  serverOptions?: readonly string[]
  /** More environment of every sidecar; `{state}` is a folder of its pod. */
  environment?: Readonly<Record<string, string>>
  /** Each sidecar keeps its state on a disk of its own of so many KiB, empty at each start. */
  stateKiB?: number
  /** Runs sidecars and server from the bundle of the image instead of from the sources. */
  bundled?: boolean
  /** More flags of Node for every sidecar and the server, as `--cpu-prof`. */
  nodeFlags?: readonly string[]
  onProgress?: (step: string) => void
}

export interface LabPod {
  name: string
  namespace: string
  node: string
  site: string
  /** Of its node, on the site's LAN. */
  hostIP: string
  uid: string
  ips: [string, string]
  sidecar: boolean
}

/** What crosses the internet is late by half of the round trip, or lost. */
interface Internet {
  rttMs: number
  loss: number
  seed: number
}

interface State {
  name: string
  internet: Internet
  layout: Layout
  cni: boolean
  replicas: 1 | 2
  serverOptions: readonly string[]
  environment: Readonly<Record<string, string>>
  stateKiB: number | undefined
  bundled: boolean
  nodeFlags: readonly string[]
  pods: LabPod[]
  services: ServiceSpec[]
}

export interface SpawnOptions {
  stdio?: StdioOptions
  uid?: number
  env?: Record<string, string>
}

const replicaNames = ['server', 'server-2']

/** A running lab: the network, the server and pods with their sidecars, all as real processes. */
export class Lab {
  readonly #state: State
  readonly folder: string

  private constructor(state: State) {
    this.#state = state
    this.folder = join(labsFolder, state.name)
  }

  static async up(options: UpOptions = {}): Promise<Lab> {
    requireRoot()
    const name = options.name ?? `lab-${randomBytes(3).toString('hex')}`
    if (!/^[a-z0-9][a-z0-9-]{0,30}$/.test(name))
      throw labError(`Cannot make lab "${name}": use a-z, 0-9 and -.`)
    const folder = join(labsFolder, name)
    if (existsSync(folder))
      throw labError(`Cannot make lab ${name}: it is there. Take it down first, or choose another name.`)
    const { rttMs = 0, loss = 0, seed = 1, serverOptions = [], environment = {} } = options
    const { bundled = false, nodeFlags = [], noCni = false, replicas = 1, stateKiB } = options
    const { onProgress = () => undefined } = options
    const layout = layoutFor(options)
    const lab = new Lab({
      name,
      internet: { rttMs, loss, seed },
      layout,
      cni: !noCni,
      replicas,
      serverOptions,
      environment,
      stateKiB,
      bundled,
      nodeFlags,
      pods: [],
      services: [...layout.services],
    })
    try {
      await lab.#build(options, onProgress)
      return lab
    } catch (error) {
      await lab.down()
      throw error
    }
  }

  /** A lab that was made before, by this process or another. */
  static open(name?: string): Lab {
    const known = Lab.list()
    const [only] = known
    if (name === undefined && (only === undefined || known.length > 1)) {
      const which =
        known.length === 0
          ? 'there is none; make one with "npm run lab -- up"'
          : `choose one with --name: ${known.join(', ')}`
      throw labError(`Cannot tell which lab: ${which}.`)
    }
    const chosen = name ?? only ?? ''
    try {
      return new Lab(JSON.parse(readFileSync(join(labsFolder, chosen, 'state.json'), 'utf8')) as State)
    } catch (error) {
      throw labError(
        `Cannot use lab ${chosen}: it is not there, or only half of it is; "down --name ${chosen}" clears it.`,
        error,
      )
    }
  }

  static list(): string[] {
    if (!existsSync(labsFolder)) return []
    return readdirSync(labsFolder).filter((name) => name !== basename(appFolder))
  }

  /** Takes a lab down by its name, whatever is left of it. */
  static async down(name: string): Promise<void> {
    requireRoot()
    // What is being made may add to it until it fails, as it loses what it stands on.
    for (let tries = 0; tries < 10; tries++) {
      const left = await namespacesOf(name)
      if (left.length === 0) break
      await deleteNamespaces(left)
    }
    rmSync(join(labsFolder, name), { recursive: true, force: true })
    if (Lab.list().length === 0) rmSync(labsFolder, { recursive: true, force: true })
  }

  get name(): string {
    return this.#state.name
  }

  get pods(): readonly LabPod[] {
    return this.#state.pods
  }

  /** Namespaces that are not pods. */
  get machines(): readonly string[] {
    return this.#state.layout.machines
  }

  get services(): { name: string; clusterIPs: [string, string]; ports: number[]; pods: string[] }[] {
    return this.#state.services.map(({ name, index, ports, pods }) => ({
      name,
      clusterIPs: clusterIPs(index),
      ports,
      pods,
    }))
  }

  /** Where the server's manifests are; files put here are served. */
  get manifests(): string {
    return join(this.folder, 'manifests')
  }

  pod(name: string): LabPod {
    const pod = this.pods.find((p) => p.name === name)
    if (pod !== undefined) return pod
    throw labError(
      `Cannot find "${name}": the pods are ${this.pods.map((p) => p.name).join(', ')}; the machines ${this.machines.join(', ')}.`,
    )
  }

  logOf(part: string): string {
    return logIn(this.folder, part)
  }

  /** Starts a program in a pod (with its resolv.conf) or on a machine; `uid` 0 unless told. */
  spawn(
    where: string,
    argv: readonly string[],
    { stdio = 'pipe', uid, env }: SpawnOptions = {},
  ): ChildProcess {
    const [program = '', ...args] = commandIn(this.#place(where), argv, uid)
    return spawn(program, args, { stdio, env: { ...process.env, ...env } })
  }

  /** Runs a program to its end. */
  run(
    where: string,
    argv: readonly string[],
    options: SpawnOptions & { input?: string; timeoutMs?: number } = {},
  ): Promise<Output> {
    const { input, timeoutMs = 90_000, ...rest } = options
    return collect(this.spawn(where, argv, rest), input, timeoutMs)
  }

  /** The command line of a script of this project, for `spawn` and `run`. */
  node(script: string, ...args: string[]): string[] {
    return nodeCommand((this.#state.bundled && bundledScripts[script]) || script, ...args)
  }

  /** What the pod's sidecar (or the server, on mkmaster1) answers on its admin port. */
  async admin(
    where: string,
    path: string,
    port: number = where === 'mkmaster1' ? ports.serverAdmin : ports.sidecarAdmin,
  ): Promise<string> {
    const script = `fetch('http://127.0.0.1:${port}${path}').then(r=>r.text()).then(t=>process.stdout.write(t))`
    const { code, stdout, stderr } = await this.run(where, [
      `${appFolder}/node_modules/.bin/node`,
      '-e',
      script,
    ])
    if (code !== 0) throw labError(`Cannot ask ${where} for ${path}: ${stderr.trim()}`)
    return stdout
  }

  /** The server's replicas: the name of each, which is that of its log and pid file too, and its ports. */
  get replicas(): { name: string; port: number; adminPort: number }[] {
    return replicaNames.slice(0, this.#state.replicas).map((name, i) => {
      return { name, port: ports.server + 10 * i, adminPort: ports.serverAdmin + 10 * i }
    })
  }

  async startServer(replica = 'server'): Promise<void> {
    const own = this.replicas.find((r) => r.name === replica)
    if (own === undefined) throw labError(`Cannot start ${replica}: there is no such replica in this lab.`)
    const peers = this.replicas
      .filter((r) => r.name !== own.name)
      .map(({ name, port }) => `${name}=127.0.0.1:${port}`)
    const options: Record<string, string> = {
      'state-dir': join(this.folder, 'server'),
      manifests: this.manifests,
      'token-keys': join(this.folder, 'keys.json'),
      'token-issuer': issuer,
      replica,
      port: String(own.port),
      'admin-port': String(own.adminPort),
      ...(peers.length === 0 ? {} : { peers: peers.join() }),
    }
    const [node = '', script = ''] = this.node('server/main.ts')
    const argv = [node, ...serverFlags, ...this.#state.nodeFlags, script]
    argv.push(...Object.entries(options).flatMap(([name, value]) => [`--${name}`, value]))
    argv.push(...this.#state.serverOptions)
    const env = serverEnvironment
    await this.#start('mkmaster1', { part: replica, argv, uid: SIDECAR_UID, env, ready: '"listening"' })
  }

  async stopServer(signal: Signal = 'TERM', replica = 'server'): Promise<void> {
    await signalIn(this.folder, replica, signal)
  }

  /** Waits until the pod has its certificate; or, not `identified`, until DNS and the interceptor serve. */
  async startSidecar(name: string, { identified = true } = {}): Promise<void> {
    const pod = this.pod(name)
    const state = join(this.folder, 'pods', name)
    const env = {
      ...sidecarEnvironment,
      POD_UID: pod.uid,
      POD_NAME: pod.name,
      POD_NAMESPACE: pod.namespace,
      POD_IPS: pod.ips.join(','),
      NODE_NAME: pod.node,
      HOST_IP: pod.hostIP,
      EDGEMESH_SERVER: this.replicas.map(({ port }) => `${serverAddress}:${port}`).join(),
      EDGEMESH_TOKEN_FILE: join(state, 'token'),
      EDGEMESH_TRUST_BUNDLE_FILE: join(this.folder, 'server/ca.crt'),
      EDGEMESH_STATE_DIR: join(state, 'state'),
      EDGEMESH_DRAIN_SECONDS: '5',
      ...Object.fromEntries(
        Object.entries(this.#state.environment).map(([k, v]) => [
          k,
          v.replaceAll('{state}', join(state, 'state')),
        ]),
      ),
    }
    const [node = '', ...rest] = this.node('sidecar/main.ts', 'run')
    const argv = [node, ...sidecarFlags, ...this.#state.nodeFlags, ...rest]
    const ready = identified ? '"ready: the tunnel endpoint serves"' : '"started"'
    const { stateKiB } = this.#state
    const disk = stateKiB === undefined ? {} : { disk: { folder: join(state, 'state'), kib: stateKiB } }
    await this.#start(name, { part: name, argv, uid: SIDECAR_UID, env, ready, ...disk })
  }

  /** TERM and KILL wait for the end of the process. */
  async stopSidecar(name: string, signal: Signal = 'TERM'): Promise<void> {
    await signalIn(this.folder, name, signal)
  }

  /** Pid of a pod's sidecar, or of the server. */
  pidOf(part: string): number {
    return pidIn(this.folder, part)
  }

  /** A pod with its namespace, token and (unless told otherwise) rules and sidecar. */
  async addPod(spec: PodSpec): Promise<LabPod> {
    const pod = this.#describe(spec)
    this.#state.pods.push(pod)
    this.#save()
    await this.#makePod(pod)
    this.writeManifest(`pod-${pod.name}`, [podManifest(pod)])
    if (pod.sidecar) await this.#inject(pod)
    return pod
  }

  /** A service over pods of the lab; replaces the one of the same name. */
  setService(name: string, pods: readonly string[], servicePorts: readonly number[]): [string, string] {
    const { services } = this.#state
    const known = services.find((s) => s.name === name)
    const index = known?.index ?? Math.max(...services.map((s) => s.index)) + 1
    const service = { name, pods: [...pods], ports: [...servicePorts], index }
    this.#state.services = [...services.filter((s) => s !== known), service]
    this.#save()
    this.#writeService(service)
    return clusterIPs(index)
  }

  async removePod(name: string): Promise<void> {
    this.#state.pods = this.#state.pods.filter((p) => p.name !== name)
    this.#save()
    rmSync(join(this.manifests, `pod-${name}.yaml`), { force: true })
    await deleteNamespaces([namespaceOf(this.name, name)])
  }

  /** Puts Kubernetes objects where the server reads them, as one file. */
  writeManifest(name: string, objects: readonly object[]): void {
    writeFileSync(join(this.manifests, `${name}.yaml`), objects.map((o) => stringify(o)).join('---\n'))
  }

  /** A token as the kubelet projects it; `claims` replaces some of its claims. */
  token(
    pod: Pick<LabPod, 'name' | 'namespace' | 'uid'>,
    claims: Record<string, unknown> = {},
  ): Promise<string> {
    return signToken(this.folder, pod, claims)
  }

  async cutUplink(site: string): Promise<void> {
    await setUplink(this.name, this.#state.layout, site, 'down')
  }

  async restoreUplink(site: string): Promise<void> {
    await setUplink(this.name, this.#state.layout, site, 'up')
  }

  /** A site's router goes off and on again: every mapping of its NAT is gone. */
  async rebootRouter(site: string): Promise<void> {
    const router = this.#state.layout.sites.find((s) => s.name === site)?.router
    if (router === undefined) throw labError(`Cannot reboot the router of "${site}": there is no such site.`)
    await this.cutUplink(site)
    await forgetConnections(this.name, router)
    await this.restoreUplink(site)
  }

  /** Changes delay and loss of the internet while everything runs. */
  async setInternet({ rttMs = 0, loss = 0, seed = 1 }: Partial<Internet>): Promise<void> {
    const { internet, layout } = this.#state
    if (isSlow(internet)) {
      await routeThroughDelay(this.name, layout, false)
      await signalIn(this.folder, 'delay', 'KILL')
    }
    this.#state.internet = { rttMs, loss, seed }
    this.#save()
    await this.#delay()
  }

  async down(): Promise<void> {
    await Lab.down(this.name)
  }

  async #build(options: UpOptions, onProgress: (step: string) => void): Promise<void> {
    this.#makeFolders()
    const { layout, cni } = this.#state
    onProgress(`${layout.sites.length + 1} sites, ${layout.nodes.length} nodes and an internet`)
    await Promise.all([
      makeNetwork(this.name, layout, { cni, lanKbit: options.lanKbit }),
      makeKeys(this.folder),
      this.#state.bundled ? makeBundle() : warmCompileCache(),
    ])
    for (const spec of layout.pods) this.#state.pods.push(this.#describe(spec))
    this.#save()
    await Promise.all(this.pods.map((pod) => this.#makePod(pod)))
    for (const pod of this.pods) this.writeManifest(`pod-${pod.name}`, [podManifest(pod)])
    for (const service of this.#state.services) this.#writeService(service)
    if (options.manifests !== undefined) await this.#addManifests(options.manifests)
    onProgress('the server on mkmaster1, and the rules of every pod')
    const extras = this.#startExtras()
    await Promise.all([this.#startServers(), extras, ...this.pods.map((pod) => this.#init(pod))])
    onProgress('the sidecars')
    await Promise.all(this.pods.map((pod) => this.startSidecar(pod.name)))
  }

  #makeFolders(): void {
    mkdirSync(appFolder, { recursive: true })
    mkdirSync(labsFolder, { recursive: true })
    mkdirSync(this.folder) // not recursive: of two labs of one name, one fails here
    for (const name of ['log', 'pid', 'pods', 'manifests', 'server']) mkdirSync(join(this.folder, name))
    chownSync(join(this.folder, 'server'), SIDECAR_UID, SIDECAR_UID)
  }

  #describe({ name, node: nodeName, ip, sidecar = true }: PodSpec): LabPod {
    const node = nodeOf(this.#state.layout, nodeName)
    const host = 2 + this.pods.filter((p) => p.node === nodeName).length
    const [, , subnet = '', last = ''] = (ip ?? `10.244.${node.pods}.${host}`).split('.')
    const ips: [string, string] = [
      `10.244.${subnet}.${last}`,
      `fd00:10:244:${subnet}::${Number(last).toString(16)}`,
    ]
    const uid = randomUUID()
    const { site, address: hostIP } = node
    return { name, namespace: 'default', node: nodeName, site, hostIP, uid, ips, sidecar }
  }

  async #makePod(pod: LabPod): Promise<void> {
    const folder = join(this.folder, 'pods', pod.name)
    mkdirSync(join(folder, 'state'), { recursive: true })
    chownSync(join(folder, 'state'), SIDECAR_UID, SIDECAR_UID)
    const search = 'default.svc.cluster.local svc.cluster.local cluster.local'
    writeFileSync(
      join(folder, 'resolv.conf'),
      `nameserver ${dnsAddress}\nsearch ${search}\noptions ndots:5\n`,
    )
    writeFileSync(join(folder, 'token'), await this.token(pod), { mode: 0o400 })
    chownSync(join(folder, 'token'), SIDECAR_UID, SIDECAR_UID)
    await makePod(this.name, pod.name, nodeOf(this.#state.layout, pod.node), {
      v4: pod.ips[0],
      v6: pod.ips[1],
    })
  }

  async #inject(pod: LabPod): Promise<void> {
    await this.#init(pod)
    await this.startSidecar(pod.name)
  }

  async #init(pod: LabPod): Promise<void> {
    const argv = this.node('sidecar/main.ts', 'init', '--service-cidrs', serviceCidrs.join())
    const { code, stdout, stderr } = await this.run(pod.name, argv)
    writeFileSync(this.logOf(`${pod.name}-init`), stdout + stderr)
    if (code !== 0) throw labError(`Cannot inject pod ${pod.name}: ${stderr.trim()}`)
  }

  #writeService(service: ServiceSpec): void {
    const pods = service.pods.map((name) => this.pod(name))
    this.writeManifest(`service-${service.name}`, serviceManifests(service, pods))
  }

  async #addManifests(folder: string): Promise<void> {
    for (const name of await readdir(folder))
      await copyFile(join(folder, name), join(this.manifests, `extra-${name}`))
  }

  /** One after the other: the first makes the CA that all of them use. */
  async #startServers(): Promise<void> {
    for (const { name } of this.replicas) await this.startServer(name)
  }

  async #startExtras(): Promise<void> {
    const served = this.#state.services.filter((s) => s.name.startsWith('tcp-echo-'))
    const echoes = served.flatMap((s) => s.pods).map((name) => this.pod(name))
    await Promise.all([
      ...echoes.map(({ name, node: on }) => {
        const argv = nodeCommand('test/lab/echo-server.ts', '2701', name, on)
        return this.#start(name, { part: `${name}-app`, argv, ready: 'echo on' })
      }),
      this.#start('internet', {
        part: 'internet-dns',
        argv: nodeCommand('test/lab/internet-dns.ts', dnsAddress),
        ready: 'listening',
      }),
      this.#delay(),
    ])
  }

  async #delay(): Promise<void> {
    const { internet, layout } = this.#state
    if (!isSlow(internet)) return
    await routeThroughDelay(this.name, layout, true)
    const args = [internet.rttMs / 2, internet.loss, internet.seed].map(String)
    const argv = nodeCommand('test/lab/delay.ts', ...args)
    await this.#start('internet', { part: 'delay', argv, ready: 'delaying' })
  }

  async #start(where: string, daemon: Daemon): Promise<void> {
    await startIn(this.folder, this.#place(where), daemon)
  }

  #place(where: string): { namespace: string; resolvConf: string | undefined } {
    const isMachine = this.machines.includes(where)
    const resolvConf = isMachine ? undefined : join(this.folder, 'pods', this.pod(where).name, 'resolv.conf')
    return { namespace: namespaceOf(this.name, where), resolvConf }
  }

  #save(): void {
    writeFileSync(join(this.folder, 'state.json'), JSON.stringify(this.#state, undefined, 2))
  }
}

function layoutFor({ natA, natB, natSites, ports: morePorts }: UpOptions): Layout {
  const pair = [natA, natB].some((kind) => kind !== undefined)
    ? (['a', 'b'] as const).map((name) => ({ name, nat: (name === 'a' ? natA : natB) ?? 'port' }))
    : undefined
  const sites = natSites ?? pair
  return sites === undefined ? standardLayout(morePorts) : natLayout(sites, morePorts)
}

function isSlow({ rttMs, loss }: Internet): boolean {
  return rttMs > 0 || loss > 0
}

function requireRoot(): void {
  if (process.getuid?.() === 0) return
  throw labError('Cannot make network namespaces: root is needed. Run it with sudo.')
}

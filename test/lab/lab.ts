import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process'
import { randomBytes, randomUUID } from 'node:crypto'
import {
  chownSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { copyFile, readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { exportJWK, exportPKCS8, generateKeyPair, importPKCS8, SignJWT } from 'jose'
import { stringify } from 'yaml'
import { EdgeMeshError } from '#shared/errors.ts'
import { ports, SIDECAR_UID } from '#shared/ports.ts'
import {
  deleteNamespaces,
  inNamespace,
  makeNetwork,
  makePod,
  namespaceOf,
  namespacesOf,
  setUplink,
} from './network.ts'
import { collect, mustRun, type Output, run } from './shell.ts'
import {
  basePods,
  baseServices,
  clusterIPs,
  dnsAddress,
  machines,
  nodeOf,
  type PodSpec,
  podManifest,
  type ServiceSpec,
  type Site,
  serverAddress,
  serviceCidrs,
  serviceManifests,
} from './topology.ts'

export const labsFolder = '/run/edgemesh-lab'
/** Where every process of a lab sees the project: the clone itself may be closed to uid 1337. */
const appFolder = join(labsFolder, 'app')
const project = join(import.meta.dirname, '../..')
/**
 * Flags and environment of the sidecar's process, as the injector will set them: less memory for every pod. Without
 * TurboFan it takes 4 MB less at the start and 20 MB less under load, and carries as much: the work is in C++.
 */
const sidecarFlags = ['--max-semi-space-size=1', '--v8-pool-size=1', '--no-opt']
const sidecarEnvironment = { MALLOC_ARENA_MAX: '1' }
const issuer = 'https://lab.edgemesh.test'
const readyDeadlineMs = 20_000

export interface UpOptions {
  /** Default: a name that is not taken. */
  name?: string
  /** Round-trip time of the internet segment in ms; 0 for none added. */
  rttMs?: number
  /** More ports of the services `edge` and `cloud`. */
  ports?: readonly number[]
  /** A folder of more manifests for the server. */
  manifests?: string
  /** More options of the server, as `--leaf-lifetime 30s`. */
  serverOptions?: readonly string[]
  onProgress?: (step: string) => void
}

export interface LabPod {
  name: string
  namespace: string
  node: string
  site: Site
  uid: string
  ips: [string, string]
  sidecar: boolean
}

interface State {
  name: string
  rttMs: number
  serverOptions: readonly string[]
  pods: LabPod[]
  services: ServiceSpec[]
}

export interface SpawnOptions {
  stdio?: StdioOptions
  uid?: number
  env?: Record<string, string>
}

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
    const { rttMs = 0, serverOptions = [], onProgress = () => undefined } = options
    const state = { name, rttMs, serverOptions, pods: [], services: baseServices(options.ports ?? []) }
    const lab = new Lab(state)
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
    await deleteNamespaces(await namespacesOf(name))
    rmSync(join(labsFolder, name), { recursive: true, force: true })
    if (Lab.list().length === 0) rmSync(labsFolder, { recursive: true, force: true })
  }

  get name(): string {
    return this.#state.name
  }

  get pods(): readonly LabPod[] {
    return this.#state.pods
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
      `Cannot find "${name}": the pods are ${this.pods.map((p) => p.name).join(', ')}; the machines ${machines.join(', ')}.`,
    )
  }

  logOf(part: string): string {
    return join(this.folder, 'log', `${part}.log`)
  }

  /** Starts a program in a pod (with its resolv.conf) or on a machine; `uid` 0 unless told. */
  spawn(
    where: string,
    argv: readonly string[],
    { stdio = 'pipe', uid, env }: SpawnOptions = {},
  ): ChildProcess {
    const [program = '', ...args] = this.#command(where, argv, uid)
    return spawn(program, args, { stdio, env: { ...process.env, ...env } })
  }

  /** Runs a program to its end. */
  run(
    where: string,
    argv: readonly string[],
    options: SpawnOptions & { input?: string; timeoutMs?: number } = {},
  ): Promise<Output> {
    const { input, timeoutMs = 30_000, ...rest } = options
    return collect(this.spawn(where, argv, rest), input, timeoutMs)
  }

  /** The command line of a script of this project, inside the lab: the path is from the project's root. */
  node(script: string, ...args: string[]): string[] {
    return [`${appFolder}/node_modules/.bin/node`, `${appFolder}/${script}`, ...args]
  }

  /** What the pod's sidecar (or the server, on mkmaster1) answers on its admin port. */
  async admin(where: string, path: string): Promise<string> {
    const port = where === 'mkmaster1' ? ports.serverAdmin : ports.sidecarAdmin
    const script = `fetch('http://127.0.0.1:${port}${path}').then(r=>r.text()).then(t=>process.stdout.write(t))`
    const { code, stdout, stderr } = await this.run(where, [
      `${appFolder}/node_modules/.bin/node`,
      '-e',
      script,
    ])
    if (code !== 0) throw labError(`Cannot ask ${where} for ${path}: ${stderr.trim()}`)
    return stdout
  }

  async startServer(): Promise<void> {
    const stateDir = join(this.folder, 'server')
    const argv = this.node('server/main.ts')
    argv.push(
      '--state-dir',
      stateDir,
      '--manifests',
      this.manifests,
      '--token-keys',
      join(this.folder, 'keys.json'),
    )
    argv.push('--token-issuer', issuer, '--replica', 'mkmaster1', ...this.#state.serverOptions)
    await this.#start('mkmaster1', 'server', argv, SIDECAR_UID, {}, '"listening"')
  }

  async stopServer(signal: 'TERM' | 'KILL' | 'STOP' | 'CONT' = 'TERM'): Promise<void> {
    await this.#signal('server', signal)
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
      EDGEMESH_SERVER: `${serverAddress}:${ports.server}`,
      EDGEMESH_TOKEN_FILE: join(state, 'token'),
      EDGEMESH_TRUST_BUNDLE_FILE: join(this.folder, 'server/ca.crt'),
      EDGEMESH_STATE_DIR: join(state, 'state'),
      EDGEMESH_DRAIN_SECONDS: '5',
    }
    const [node = '', ...rest] = this.node('sidecar/main.ts', 'run')
    const argv = [node, ...sidecarFlags, ...rest]
    await this.#start(
      name,
      name,
      argv,
      SIDECAR_UID,
      env,
      identified ? '"ready: the tunnel endpoint serves"' : '"started"',
    )
  }

  /** TERM and KILL wait for the end of the process. */
  async stopSidecar(name: string, signal: 'TERM' | 'KILL' | 'STOP' | 'CONT' = 'TERM'): Promise<void> {
    await this.#signal(name, signal)
  }

  /** Pid of a pod's sidecar, or of the server. */
  pidOf(part: string): number {
    return Number(readFileSync(join(this.folder, 'pid', part), 'utf8'))
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
  async token(
    pod: Pick<LabPod, 'name' | 'namespace' | 'uid'>,
    claims: Record<string, unknown> = {},
  ): Promise<string> {
    const key = await importPKCS8(readFileSync(join(this.folder, 'token.key'), 'utf8'), 'ES256')
    const account = `system:serviceaccount:${pod.namespace}:default`
    const now = Math.floor(Date.now() / 1_000)
    const kubernetes = {
      namespace: pod.namespace,
      pod: { name: pod.name, uid: pod.uid },
      serviceaccount: { name: 'default', uid: pod.uid },
    }
    const payload = {
      iss: issuer,
      sub: account,
      aud: ['edgemesh'],
      iat: now,
      nbf: now,
      exp: now + 86_400,
      'kubernetes.io': kubernetes,
      ...claims,
    }
    return new SignJWT(payload).setProtectedHeader({ alg: 'ES256', kid: 'lab' }).sign(key)
  }

  async cutUplink(site: Site): Promise<void> {
    await setUplink(this.name, site, 'down')
  }

  async restoreUplink(site: Site): Promise<void> {
    await setUplink(this.name, site, 'up')
  }

  async down(): Promise<void> {
    await Lab.down(this.name)
  }

  async #build(options: UpOptions, onProgress: (step: string) => void): Promise<void> {
    this.#makeFolders()
    onProgress('two sites, three nodes and an internet')
    await Promise.all([makeNetwork(this.name, this.#state.rttMs > 0), this.#makeKeys(), warmCompileCache()])
    for (const spec of basePods) this.#state.pods.push(this.#describe(spec))
    this.#save()
    await Promise.all(this.pods.map((pod) => this.#makePod(pod)))
    for (const pod of this.pods) this.writeManifest(`pod-${pod.name}`, [podManifest(pod)])
    for (const service of this.#state.services) this.#writeService(service)
    if (options.manifests !== undefined) await this.#addManifests(options.manifests)
    onProgress('the server on mkmaster1, and the rules of every pod')
    const extras = this.#startExtras()
    await Promise.all([this.startServer(), extras, ...this.pods.map((pod) => this.#init(pod))])
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

  async #makeKeys(): Promise<void> {
    const { privateKey, publicKey } = await generateKeyPair('ES256', { extractable: true })
    writeFileSync(join(this.folder, 'token.key'), await exportPKCS8(privateKey), { mode: 0o600 })
    const jwk = { ...(await exportJWK(publicKey)), kid: 'lab', alg: 'ES256', use: 'sig' }
    writeFileSync(join(this.folder, 'keys.json'), JSON.stringify({ keys: [jwk] }))
  }

  #describe({ name, node: nodeName, ip, sidecar = true }: PodSpec): LabPod {
    const node = nodeOf(nodeName)
    const host = 2 + this.pods.filter((p) => p.node === nodeName).length
    const [, , subnet = '', last = ''] = (ip ?? `10.244.${node.pods}.${host}`).split('.')
    const ips: [string, string] = [
      `10.244.${subnet}.${last}`,
      `fd00:10:244:${subnet}::${Number(last).toString(16)}`,
    ]
    return { name, namespace: 'default', node: nodeName, site: node.site, uid: randomUUID(), ips, sidecar }
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
    await makePod(this.name, pod.name, nodeOf(pod.node), { v4: pod.ips[0], v6: pod.ips[1] })
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

  async #startExtras(): Promise<void> {
    const echoes = this.pods.filter((p) => p.name.startsWith('tcp-echo-'))
    const delay = this.#state.rttMs > 0 ? [String(this.#state.rttMs / 2)] : []
    await Promise.all([
      ...echoes.map((p) =>
        this.#start(
          p.name,
          `${p.name}-app`,
          this.node('test/lab/echo-server.ts', '2701', p.name, p.node),
          0,
          {},
          'echo on',
        ),
      ),
      this.#start(
        'internet',
        'internet-dns',
        this.node('test/lab/internet-dns.ts', dnsAddress),
        0,
        {},
        'listening',
      ),
      ...delay.map((ms) =>
        this.#start('internet', 'delay', this.node('test/lab/delay.ts', ms), 0, {}, 'delaying'),
      ),
    ])
  }

  /** Starts a process that outlives us, logs to a file, and is ready when the file says the word. */
  async #start(
    where: string,
    part: string,
    argv: string[],
    uid: number,
    env: Record<string, string>,
    readyWord: string,
  ): Promise<void> {
    const log = this.logOf(part)
    const from = existsSync(log) ? readFileSync(log).length : 0
    const out = openSync(log, 'a')
    const [program = '', ...args] = this.#command(where, argv, uid)
    const child = spawn(program, args, {
      stdio: ['ignore', out, out],
      detached: true,
      env: { PATH: process.env.PATH, ...env },
    })
    child.unref()
    let exited: number | null | undefined
    child.once('exit', (code) => {
      exited = code
    })
    writeFileSync(join(this.folder, 'pid', part), String(child.pid)) // exec all the way: this pid is the program's
    const until = Date.now() + readyDeadlineMs
    for (;;) {
      const said = readFileSync(log).subarray(from).toString()
      if (said.includes(readyWord)) return
      if (exited !== undefined || Date.now() > until) {
        const tail = said.trim().split('\n').slice(-8).join('\n')
        throw labError(
          `Cannot start ${part}: ${exited === undefined ? `not ready after ${readyDeadlineMs / 1_000} s` : `it ended with ${exited}`}. It said:\n${tail}`,
        )
      }
      await new Promise((resolve) => setTimeout(resolve, 25))
    }
  }

  async #signal(part: string, signal: string): Promise<void> {
    const pid = this.pidOf(part)
    await run(['kill', `-${signal}`, String(pid)])
    if (signal !== 'TERM' && signal !== 'KILL') return
    const until = Date.now() + 15_000
    while (existsSync(`/proc/${pid}/cmdline`) && readFileSync(`/proc/${pid}/cmdline`).length > 0) {
      if (Date.now() > until) throw labError(`Cannot stop ${part}: it still runs 15 s after SIG${signal}.`)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }

  #command(where: string, argv: readonly string[], uid = 0): string[] {
    const isMachine = (machines as readonly string[]).includes(where)
    const resolvConf = isMachine ? undefined : join(this.folder, 'pods', this.pod(where).name, 'resolv.conf')
    const mounts = [
      `mount --bind ${project} ${appFolder}`,
      ...(resolvConf === undefined ? [] : [`mount --bind ${resolvConf} /etc/resolv.conf`]),
      `export NODE_COMPILE_CACHE=${appFolder}/.cache/compile`,
      'exec "$@"',
    ]
    const drop = [
      'setpriv',
      `--reuid=${uid}`,
      `--regid=${uid}`,
      '--clear-groups',
      '--no-new-privs',
      '--inh-caps=-all',
      '--bounding-set=-all',
    ]
    const user = uid === 0 ? [] : drop
    return inNamespace(namespaceOf(this.name, where), [
      'unshare',
      '--mount',
      '--propagation',
      'private',
      'sh',
      '-c',
      mounts.join(' && '),
      'sh',
      ...user,
      ...argv,
    ])
  }

  #save(): void {
    writeFileSync(join(this.folder, 'state.json'), JSON.stringify(this.#state, undefined, 2))
  }
}

/**
 * Node strips the types of our sources at each start, which costs 18 MB that the bundle of an image does not: one
 * throw-away start of everything, as the sidecar's uid, leaves the stripped code in Node's compile cache.
 */
async function warmCompileCache(): Promise<void> {
  const cache = join(project, '.cache/compile')
  mkdirSync(cache, { recursive: true, mode: 0o777 })
  chownSync(cache, SIDECAR_UID, SIDECAR_UID)
  const marker = join(project, `.cache/warmed-${newestSource()}${sidecarFlags.join('')}`)
  if (existsSync(marker)) return
  const node = `setpriv --reuid=${SIDECAR_UID} --regid=${SIDECAR_UID} --clear-groups "$2/node_modules/.bin/node" ${sidecarFlags.join(' ')}`
  const script = [
    'mount --bind "$1" "$2"',
    'export NODE_COMPILE_CACHE="$2/.cache/compile"',
    `${node} "$2/test/lab/warm.ts"`,
    `${node} "$2/sidecar/main.ts" version`,
    `${node} "$2/server/main.ts" --help`,
  ]
  const isolated = ['unshare', '--mount', '--propagation', 'private']
  await mustRun([...isolated, 'sh', '-c', script.join(' && '), 'sh', project, appFolder])
  writeFileSync(marker, '')
}

/** Changes whenever a source of the lab's processes does. */
function newestSource(): number {
  const files = ['sidecar', 'server'].flatMap((part) =>
    readdirSync(join(project, part), { recursive: true, encoding: 'utf8' }).map((name) =>
      join(project, part, name),
    ),
  )
  return Math.max(...files.map((file) => Math.floor(statSync(file).mtimeMs)))
}

function requireRoot(): void {
  if (process.getuid?.() === 0) return
  throw labError('Cannot make network namespaces: root is needed. Run it with sudo.')
}

function labError(message: string, cause?: unknown): EdgeMeshError {
  return new EdgeMeshError('lab-failed', message, cause)
}

import type { ChildProcess } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Lab } from '../lab/lab.ts'
import { mustRun } from '../lab/shell.ts'
import { podManifest } from '../lab/topology.ts'
import type { MeshPod } from './load/mesh-client.ts'

/** A lab made ready to be measured in, with the peers' processes beside ours. */
export class Rig {
  readonly lab: Lab
  /** For configurations and certificates of the peers. */
  readonly folder: string

  private constructor(lab: Lab) {
    this.lab = lab
    this.folder = join(lab.folder, 'bench')
    mkdirSync(this.folder, { recursive: true })
  }

  static async in(lab: Lab): Promise<Rig> {
    const rig = new Rig(lab)
    // Thousands of closed connections to one address must not slow the next connect().
    const tune =
      'echo "1024 65000" >ip_local_port_range; echo 1 >tcp_tw_reuse; echo 4096 >/proc/sys/net/core/somaxconn'
    for (const where of [...lab.machines, ...lab.pods.map((p) => p.name)])
      await lab.run(where, ['sh', '-c', `cd /proc/sys/net/ipv4 && ${tune}`])
    return rig
  }

  /** Starts a program that runs until the lab is taken down; resolves once its port accepts. */
  async daemon(where: string, argv: readonly string[], port: number): Promise<Meter> {
    const child = this.lab.spawn(where, argv, { stdio: ['ignore', 'ignore', 'pipe'] })
    let said = ''
    child.stderr?.on('data', (chunk) => {
      said += chunk
    })
    for (const until = Date.now() + 10_000; ; ) {
      const { stdout } = await this.lab.run(where, ['ss', '-Hltn', `sport = :${port}`])
      if (stdout.trim() !== '') return new Meter(() => child.pid ?? 0)
      if (child.exitCode !== null || Date.now() > until)
        throw new Error(`Cannot start ${argv[0]} in ${where}: ${said.trim() || 'its port does not open'}`)
      await new Promise((resolve) => setTimeout(resolve, 25))
    }
  }

  /** haproxy with one thread; `port` is one that it listens on. */
  async haproxy(where: string, name: string, config: string, port: number): Promise<Meter> {
    const file = join(this.folder, `${name}.cfg`)
    const defaults = 'timeout connect 5s\n  timeout client 1h\n  timeout server 1h'
    writeFileSync(file, `global\n  nbthread 1\n  maxconn 4000\ndefaults\n  ${defaults}\n${config}\n`)
    return this.daemon(where, ['haproxy', '-db', '-f', file], port)
  }

  /** A script of this project as a process that speaks in lines of JSON. */
  script(where: string, script: string, ...args: string[]): LineProcess {
    return new LineProcess(this.lab.spawn(where, this.lab.node(script, ...args), { stdio: 'pipe' }), script)
  }

  /** Pods that the server knows and nobody runs: their tokens are for clients of the bench. */
  async fakePods(prefix: string, count: number): Promise<MeshPod[]> {
    const pods = Array.from({ length: count }, (_, i) => {
      const uid = randomUUID()
      const ips = [`10.250.${i >> 8}.${i & 255}`]
      return { name: `${prefix}-${i}`, namespace: 'default', node: 'mkworker3', uid, ips, sidecar: true }
    })
    const folder = join(this.folder, prefix)
    mkdirSync(folder, { recursive: true })
    const made: MeshPod[] = []
    for (const pod of pods) {
      const tokenFile = join(folder, pod.name)
      writeFileSync(tokenFile, await this.lab.token(pod))
      made.push({ uid: pod.uid, tokenFile })
    }
    this.lab.writeManifest(`bench-${prefix}`, pods.map(podManifest))
    await new Promise((resolve) => setTimeout(resolve, 1_000)) // the server reads its folder
    return made
  }

  /** The cpu and memory of a pod's sidecar, or of the server. */
  meter(part: string): Meter {
    return new Meter(() => this.lab.pidOf(part))
  }

  /** Certificates of a CA of its own, for both ends of an mTLS pair. */
  async certificates(): Promise<{ ca: string; pem: string }> {
    const file = (name: string) => join(this.folder, name)
    const [ca, caKey, key, csr, crt] = ['ca.crt', 'ca.key', 'tls.key', 'tls.csr', 'tls.crt'].map(file) as [
      string,
      string,
      string,
      string,
      string,
    ]
    const ec = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
    const root = [...ec, '-x509', '-days', '2', '-subj', '/CN=bench', '-keyout', caKey, '-out', ca]
    await mustRun(['openssl', 'req', ...root])
    await mustRun(['openssl', 'req', ...ec, '-subj', '/CN=peer', '-keyout', key, '-out', csr])
    const sign = ['-in', csr, '-CA', ca, '-CAkey', caKey, '-CAcreateserial', '-days', '2', '-out', crt]
    await mustRun(['openssl', 'x509', '-req', ...sign])
    const pem = file('tls.pem')
    writeFileSync(pem, readFileSync(crt, 'utf8') + readFileSync(key, 'utf8'))
    return { ca, pem }
  }
}

/** What the kernel says of a process: it may be another one after a restart. */
export class Meter {
  readonly #pid: () => number

  constructor(pid: () => number) {
    this.#pid = pid
  }

  /** User and system time of all its threads. */
  get cpuSeconds(): number {
    const fields = readFileSync(`/proc/${this.#pid()}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? []
    return (Number(fields[11]) + Number(fields[12])) / 100
  }

  get memory(): { rss: number; anonymous: number } {
    const rollup = readFileSync(`/proc/${this.#pid()}/smaps_rollup`, 'utf8')
    const megabytes = (name: string) => Number(new RegExp(`${name}:\\s+(\\d+)`).exec(rollup)?.[1]) / 1_000
    return { rss: megabytes('Rss'), anonymous: megabytes('Anonymous') }
  }
}

/** Sums over the meters of one side. */
export const cpuOf = (meters: readonly Meter[]) => meters.reduce((sum, m) => sum + m.cpuSeconds, 0)
export const memoryOf = (meters: readonly Meter[], kind: 'rss' | 'anonymous') =>
  meters.reduce((sum, m) => sum + m.memory[kind], 0)

/** A child that takes and gives one JSON value per line. */
export class LineProcess {
  readonly #child: ChildProcess
  readonly #lines: AsyncIterator<string>
  readonly #name: string
  #errors = ''

  constructor(child: ChildProcess, name: string) {
    this.#child = child
    this.#name = name
    child.stderr?.on('data', (chunk) => {
      this.#errors = `${this.#errors}${chunk}`.slice(-2_000)
    })
    this.#lines = createInterface({ input: child.stdout ?? process.stdin })[Symbol.asyncIterator]()
  }

  send(value: unknown): void {
    this.#child.stdin?.write(`${JSON.stringify(value)}\n`)
  }

  /** The next value that it prints. */
  async next<T>(): Promise<T> {
    const { value, done } = await this.#lines.next()
    if (done) throw new Error(`${this.#name} ended early: ${this.#errors.trim()}`)
    return JSON.parse(value) as T
  }

  end(): void {
    this.#child.stdin?.end()
  }

  kill(): void {
    this.#child.kill('SIGKILL')
  }
}

import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { collect, mustRun, type Output, run } from '../../lab/shell.ts'

const project = join(import.meta.dirname, '../../..')

/** A network namespace like a pod's, joined to another one that has the DNS server and the rest of the world. */
export class Pod {
  readonly name = `emt-${randomBytes(3).toString('hex')}`
  readonly world = `${this.name}-w`
  readonly resolvConf = join(tmpdir(), `${this.name}.resolv`)

  async make(): Promise<void> {
    writeFileSync(this.resolvConf, 'nameserver 10.9.0.53\nnameserver fd00:9::53\nsearch example.test\n')
    for (const ns of [this.name, this.world]) await mustRun(['ip', 'netns', 'add', ns])
    const ends = [
      [this.name, '10.9.0.1/24', 'fd00:9::1/64'],
      [this.world, '10.9.0.53/24', 'fd00:9::53/64'],
    ]
    await mustRun([
      'ip',
      '-n',
      this.name,
      'link',
      'add',
      'eth0',
      'type',
      'veth',
      'peer',
      'name',
      'eth0',
      'netns',
      this.world,
    ])
    for (const [ns = '', v4, v6] of ends) {
      const commands = [
        'link set lo up',
        `addr add ${v4} dev eth0`,
        `addr add ${v6} dev eth0 nodad`,
        'link set eth0 up',
      ]
      await mustRun(['ip', '-n', ns, '-batch', '-'], { input: `${commands.join('\n')}\n` })
    }
    const routes = 'route add default via 10.9.0.53\nroute add default via fd00:9::53\n'
    await mustRun(['ip', '-n', this.name, '-batch', '-'], { input: routes })
  }

  async remove(): Promise<void> {
    for (const ns of [this.name, this.world]) await run(['ip', 'netns', 'del', ns])
    rmSync(this.resolvConf, { force: true })
  }

  command(argv: readonly string[], { uid, world = false }: { uid?: number; world?: boolean } = {}): string[] {
    const user = uid === undefined ? [] : ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups']
    return ['nsenter', `--net=/run/netns/${world ? this.world : this.name}`, '--', ...user, ...argv]
  }

  run(argv: readonly string[], options: { uid?: number; world?: boolean } = {}): Promise<Output> {
    return run(this.command(argv, options), { cwd: project, timeoutMs: 60_000 })
  }

  init(...args: string[]): Promise<Output> {
    return this.run([process.execPath, 'sidecar/main.ts', ...args])
  }

  /** The rules without counters and comments, of both families. */
  async saved(backend: string): Promise<string> {
    const texts = await Promise.all(
      ['iptables', 'ip6tables'].flatMap((program) =>
        ['nat', 'raw'].map(
          async (table) => (await this.run([`${program}-${backend}-save`, '-t', table])).stdout,
        ),
      ),
    )
    return texts
      .join('')
      .replaceAll(/^#.*\n/gm, '')
      .replaceAll(/\[\d+:\d+\]/g, '[0:0]')
  }

  /** A script of this folder that stays; its first line says that it is ready. */
  async start(
    script: string,
    args: string[],
    options: { uid?: number; world?: boolean } = {},
  ): Promise<Script> {
    const argv = this.command([process.execPath, join(import.meta.dirname, script), ...args], options)
    const [program = '', ...rest] = argv
    const script_ = new Script(spawn(program, rest, { stdio: ['pipe', 'pipe', 'inherit'] }))
    await script_.ready
    return script_
  }
}

export class Script {
  readonly ready: Promise<unknown>
  readonly #ended: Promise<Output>
  readonly #child: ChildProcess

  constructor(child: ChildProcess) {
    this.#child = child
    this.ready = new Promise((resolve) => child.stdout?.once('data', resolve))
    this.#ended = collect(child, undefined, 60_000)
  }

  /** Ends it, and returns the lines that it printed after the first. */
  async stop(): Promise<string[]> {
    this.#child.kill()
    return (await this.#ended).stdout.trim().split('\n').slice(1)
  }
}

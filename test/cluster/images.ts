import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { labError } from '../lab/processes.ts'
import { mustRun } from '../lab/shell.ts'
import { cached, type Log } from './cache.ts'
import { images } from './layout.ts'
import { type TarEntry, tar } from './tar.ts'

const architectures: Record<string, string> = { x64: 'amd64', arm64: 'arm64' }
const pauseSource = join(import.meta.dirname, 'pause.c')

/** The archives of the images that every node knows from its start: pause, and busybox from the Debian root. */
export async function baseImages(debian: string, log: Log): Promise<string[]> {
  const busybox = readFileSync(join(debian, 'bin/busybox'))
  const code = ['images.ts', 'tar.ts'].map((name) => readFileSync(join(import.meta.dirname, name)))
  const make = async (folder: string) => {
    log('making the images pause and busybox')
    const pause = { path: 'pause', mode: 0o755, content: await compilePause(folder) }
    writeFileSync(join(folder, 'pause.tar'), dockerArchive(images.pause, [pause], ['/pause']))
    const applets = (await mustRun([join(debian, 'bin/busybox'), '--list'])).trim().split('\n')
    writeFileSync(
      join(folder, 'busybox.tar'),
      dockerArchive(images.busybox, busyboxFiles(busybox, applets), ['/bin/sh']),
    )
  }
  const from = [readFileSync(pauseSource), busybox, JSON.stringify(images), ...code]
  const folder = await cached({ kind: 'images', from, make }, log)
  return ['pause.tar', 'busybox.tar'].map((name) => join(folder, name))
}

/** An image of one layer in the format of `docker save`, which containerd imports. */
export function dockerArchive(name: string, files: readonly TarEntry[], cmd: readonly string[]): Buffer {
  const layer = tar(files)
  const config = Buffer.from(
    JSON.stringify({
      architecture: architectures[process.arch] ?? process.arch,
      os: 'linux',
      created: '1970-01-01T00:00:00Z',
      config: { Env: ['PATH=/bin:/sbin:/usr/bin:/usr/sbin'], Cmd: cmd, WorkingDir: '/' },
      rootfs: { type: 'layers', diff_ids: [`sha256:${sha256(layer)}`] },
      history: [{ created: '1970-01-01T00:00:00Z', created_by: 'test/cluster/images.ts' }],
    }),
  )
  const [configPath, layerPath] = [`${sha256(config)}.json`, `${sha256(layer)}/layer.tar`]
  const manifest = [{ Config: configPath, RepoTags: [name], Layers: [layerPath] }]
  return tar([
    { path: configPath, mode: 0o644, content: config },
    { path: layerPath, mode: 0o644, content: layer },
    { path: 'manifest.json', mode: 0o644, content: Buffer.from(JSON.stringify(manifest)) },
  ])
}

function busyboxFiles(busybox: Buffer, applets: readonly string[]): TarEntry[] {
  const folder = (path: string, mode = 0o755): TarEntry => ({ path: `${path}/`, mode })
  const text = (path: string, lines: string): TarEntry => ({ path, mode: 0o644, content: Buffer.from(lines) })
  return [
    ...['bin', 'dev', 'etc', 'proc', 'root', 'run', 'sys', 'var'].map((path) => folder(path)),
    folder('tmp', 0o1777),
    { path: 'bin/busybox', mode: 0o755, content: busybox },
    ...applets
      .filter((applet) => applet !== 'busybox')
      .map((applet) => ({ path: `bin/${applet}`, mode: 0o777, link: 'busybox' })),
    text(
      'etc/passwd',
      'root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\nedgemesh:x:1337:1337::/:/bin/sh\n',
    ),
    text('etc/group', 'root:x:0:\napp:x:1000:\nedgemesh:x:1337:\n'),
  ]
}

async function compilePause(folder: string): Promise<Buffer> {
  const binary = join(folder, 'pause')
  try {
    await mustRun(['gcc', '-Os', '-static', '-s', '-Wall', '-o', binary, pauseSource])
  } catch (error) {
    throw labError('Cannot make the image pause: gcc failed. Install gcc and libc6-dev.', error)
  }
  return readFileSync(binary)
}

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex')
}

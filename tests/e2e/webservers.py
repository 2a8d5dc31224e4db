# SPDX-License-Identifier: GPL-3.0-or-later
"""The other web servers that conf/ has a file for. Like those of servers.py, each is a context manager.

Each listens on 127.0.0.1:`port`, and has `site`, the text of a shipped file, where its operators put it.
"""

import os
import shutil

from processes import connects, free_port, start
from servers import Server


class WebServer(Server):
    def __init__(self, name, site):
        super().__init__(name)
        self.port = free_port()
        self.config = self.directory / f"{name}.conf"
        self.config.write_text(self.configuration(site))

    def start(self):
        with open(self.log, "ab") as log:
            self.process = start(self.command(), cwd=self.directory, stdout=log, stderr=log, env=self.environment())
        self.wait_ready(lambda: connects(("127.0.0.1", self.port)))

    def environment(self):
        return None

    def __exit__(self, *_):
        try:
            if self.running():
                self.process.terminate()
                self.process.wait(10)
        finally:
            super().__exit__()


class Apache(WebServer):
    """With its event MPM. `modules` are those that the shipped file wants, `main` goes outside of the virtual host."""

    def __init__(self, site, modules, document_root=None, main=""):
        self.modules = ["mpm_event", "authz_core", *modules]
        self.document_root = document_root
        self.main = main
        super().__init__("apache", site)

    def configuration(self, site):
        modules = "\n".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in self.modules)
        # As root it would turn into another user, who may not open the pool's socket: it has to be one that is there.
        user = "User www-data\nGroup www-data" if os.geteuid() == 0 else ""
        if user:
            shutil.chown(self.directory, "www-data")
        fcgid = f"FcgidIPCDir {self.directory}\nFcgidProcessTableFile {self.directory}/shm"
        return f"""
            {modules}
            {user}
            ServerName localhost
            PidFile {self.directory}/apache.pid
            DefaultRuntimeDir {self.directory}
            ErrorLog {self.log}
            LogLevel error
            {fcgid if "fcgid" in self.modules else ""}
            {self.main}
            {f'DocumentRoot "{self.document_root}"' if self.document_root else ""}
            <VirtualHost 127.0.0.1:{self.port}>
                {site}
            </VirtualHost>
            Listen 127.0.0.1:{self.port}
        """

    def command(self):
        return ["/usr/sbin/apache2", "-D", "FOREGROUND", "-f", self.config]


class Lighttpd(WebServer):
    """As Debian's own lighttpd.conf has it: the same modules, and the paths decoded and resolved."""

    def __init__(self, site):
        super().__init__("lighttpd", site)

    def configuration(self, site):
        return f"""
            server.modules = ( "mod_indexfile", "mod_access", "mod_alias", "mod_redirect" )
            server.document-root = "{self.directory}"
            server.bind = "127.0.0.1"
            server.port = {self.port}
            server.http-parseopts = (
                "header-strict" => "enable", "host-strict" => "enable", "host-normalize" => "enable",
                "url-normalize-unreserved" => "enable", "url-normalize-required" => "enable",
                "url-ctrls-reject" => "enable", "url-path-2f-decode" => "enable", "url-path-dotseg-remove" => "enable" )
            {site}
            server.modules += ( "mod_dirlisting", "mod_staticfile" )
        """

    def command(self):
        return ["/usr/sbin/lighttpd", "-D", "-f", self.config]


class Caddy(WebServer):
    """With a site that answers whatever the shipped file leaves."""

    def __init__(self, site):
        super().__init__("caddy", site)

    def configuration(self, site):
        return f"""{{
	admin off
	auto_https off
	log {{
		level ERROR
	}}
}}
http://127.0.0.1:{self.port} {{
	respond "the shop"
	{site}
}}
"""

    def environment(self):
        return {**os.environ, "HOME": str(self.directory), "XDG_DATA_HOME": str(self.directory),
                "XDG_CONFIG_HOME": str(self.directory)}

    def command(self):
        return ["caddy", "run", "--adapter", "caddyfile", "--config", self.config]


class H2o(WebServer):
    """With its default host, whose paths are those of the shipped file."""

    def __init__(self, site):
        super().__init__("h2o", site)

    def configuration(self, site):
        (self.directory / "paths.conf").write_text(site)
        # As root it would turn into another user, who may not open the pool's socket.
        user = "user: root" if os.geteuid() == 0 else ""
        return f"""
{user}
num-threads: 1
listen:
  host: 127.0.0.1
  port: {self.port}
hosts:
  default:
    paths: !file {self.directory}/paths.conf
"""

    def command(self):
        return ["h2o", "-c", self.config]

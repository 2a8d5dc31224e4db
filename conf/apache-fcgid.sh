#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Starts the program with its options where apache-fcgid.htaccess is used. A password of the database belongs into ~/.pgpass.
export MERCHANT_SESSIONS_DATABASE='postgres:///taler-merchant'
export MERCHANT_SESSIONS_WORKERS=0
export MERCHANT_SESSIONS_MAX_WAIT=20000
exec /usr/local/libexec/merchant-sessions.fcgi

"""What a WSGI server loads: ``gunicorn wsgi:app``, with the settings of gunicorn.conf.py beside this file."""

from app import create_app

app = create_app()
